//! The packed layer against a dense layer of the decoded weight, on both CPU backends.

// `NdArray` is deprecated upstream; it stays the second CPU backend here for its users.
#![allow(deprecated)]

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::contract::{random, relative_distance};
use peft_core::{CoreError, Dense, Pass, Proj, Projection, Role, Site, Storage, state};
use peft_qlora::codec::{self, Decoder, ScaleSlices};
use peft_qlora::storage::Code;
use peft_qlora::{FourBit, Fp4, Int8, Nf4, PackedLinear, double_quant, int8};

/// Rows, `d_in`, `d_out`: odd sizes, a single value, more outputs than one tile of decoded rows.
const SIZES: [[usize; 3]; 6] = [
    [1, 1, 1],
    [3, 5, 7],
    [17, 33, 65],
    [2, 100, 17],
    [4, 64, 48],
    [2, 103, 601],
];

fn devices() -> [Device; 2] {
    [Device::flex().autodiff(), Device::ndarray().autodiff()]
}

/// Encodes and decodes row-major values of rows of this length by the codec.
type Decode = dyn Fn(&[f32], usize) -> Vec<f32>;

/// A storage, and what the codec makes of a weight.
struct Case {
    storage: Box<dyn Storage>,
    decode: Box<Decode>,
}

fn four_bit<C: Code>(storage: FourBit<C>) -> Case {
    let FourBit {
        block_size,
        double_quant,
        ..
    } = storage;
    let decode = move |values: &[f32], _: usize| {
        let encoded = codec::encode(values, block_size, C::book());
        let quantised = double_quant::quantise(&encoded.absmax);
        let scales = match double_quant {
            true => quantised.slices(),
            false => ScaleSlices::Exact(&encoded.absmax),
        };
        let mut decoded = vec![0.0; values.len()];
        Decoder::new(&encoded.codes, scales, block_size, C::book()).read(0, &mut decoded);
        decoded
    };
    Case {
        storage: Box::new(storage),
        decode: Box::new(decode),
    }
}

fn eight_bit() -> Case {
    let decode = |values: &[f32], row: usize| {
        let encoded = int8::encode(values, row);
        let mut decoded = vec![0.0; values.len()];
        let scales = ScaleSlices::Exact(&encoded.absmax);
        Decoder::int8(&encoded.codes, scales, row).read(0, &mut decoded);
        decoded
    };
    Case {
        storage: Box::new(Int8 {}),
        decode: Box::new(decode),
    }
}

fn nf4() -> Case {
    four_bit(Nf4::default())
}

fn cases() -> [Case; 5] {
    [
        nf4(),
        four_bit(Nf4::new(32, true)),
        four_bit(Nf4::new(128, false)),
        four_bit(Fp4::default()),
        eight_bit(),
    ]
}

fn site(d_in: usize, d_out: usize) -> Site {
    Site {
        layer: 0,
        role: Role::Up,
        path: "h.0.mlp.up".into(),
        d_in,
        d_out,
    }
}

fn for_each_case(mut check: impl FnMut(&Device, &Case, [usize; 3])) {
    for device in devices() {
        for case in cases() {
            SIZES.iter().for_each(|sizes| check(&device, &case, *sizes));
        }
    }
}

/// A packed layer and a dense one of the weight that the codec decodes on the host.
fn pair(device: &Device, case: &Case, d_in: usize, d_out: usize) -> (Proj, Dense) {
    let weight = random([d_in, d_out], device);
    let bias = random([d_out], device);
    let values = weight
        .clone()
        .transpose()
        .into_data()
        .try_to_vec::<f32>()
        .unwrap();
    let decoded = (case.decode)(&values, d_in);
    let decoded = Tensor::<2>::from_data(TensorData::new(decoded, [d_out, d_in]), device);
    let dense = Dense::new(weight, Some(bias.clone())).no_grad();
    let packed = case.storage.pack(&site(d_in, d_out), dense).unwrap();
    (
        packed,
        Dense::new(decoded.transpose(), Some(bias)).no_grad(),
    )
}

fn assert_close(a: Tensor<3>, b: Tensor<3>, what: &str) {
    let distance = relative_distance(&a.into_data(), &b.into_data());
    assert!(distance < 1e-5, "{what}: {distance}");
}

#[test]
fn values_and_gradients_are_those_of_the_decoded_dense_layer() {
    for_each_case(|device, case, [rows, d_in, d_out]| {
        let what = format!("{device:?} {:?} {rows} {d_in} {d_out}", case.storage);
        let (packed, dense) = pair(device, case, d_in, d_out);
        let start = random([2, rows, d_in], device);
        let upstream = random([2, rows, d_out], device);
        let run = |proj: &Proj| {
            let x = start.clone().detach().require_grad();
            let y = proj.forward(x.clone(), &Pass::new());
            let grads = (y.clone() * upstream.clone()).sum().backward();
            (
                y,
                Tensor::from_inner(x.grad(&grads).expect("a gradient of `x`")),
            )
        };
        let (y, dx) = run(&packed);
        let (expected_y, expected_dx) = run(&Proj::new(dense));
        assert_close(y, expected_y, &what);
        assert_close(dx, expected_dx, &what);
    });
}

#[test]
fn the_unpacked_weight_is_the_decoded_one_bit_for_bit_and_merging_keeps_it() {
    for_each_case(|device, case, [_, d_in, d_out]| {
        let (packed, dense) = pair(device, case, d_in, d_out);
        let pass = Pass::new();
        let expected = dense.weight.val().into_data();
        assert_eq!(packed.weight(&pass).into_data(), expected);
        let merged = packed.merge(&pass).expect("a packed layer merges");
        assert_eq!(merged.weight.val().into_data(), expected);
        assert_eq!(
            merged.bias.unwrap().val().into_data(),
            dense.bias.unwrap().val().into_data()
        );
        assert_eq!(packed.dims(), (d_in, d_out));
    });
}

#[test]
fn the_gradient_of_the_input_is_the_finite_difference() {
    // The layer is linear, so that a difference of any width is exact up to rounding.
    for device in devices() {
        let (packed, _) = pair(&device, &nf4(), 9, 11);
        let upstream = random([1, 2, 11], &device);
        let loss = |x: Tensor<3>| (packed.forward(x, &Pass::new()) * upstream.clone()).sum();
        let x = random([1, 2, 9], &device).require_grad();
        let gradient = x.grad(&loss(x.clone()).backward()).unwrap();
        let gradient: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
        for (i, found) in gradient.iter().enumerate() {
            let mut step = vec![0.0; 18];
            step[i] = 1.0;
            let step = Tensor::<3>::from_data(TensorData::new(step, [1, 2, 9]), &device);
            let up: f32 = loss(x.clone() + step.clone()).into_scalar();
            let down: f32 = loss(x.clone() - step).into_scalar();
            let difference = (up - down) / 2.0;
            assert!(
                (found - difference).abs() < 1e-4 * (1.0 + difference.abs()),
                "{i}"
            );
        }
    }
}

#[test]
fn inputs_in_any_strides_are_read_right() {
    for device in devices() {
        for case in cases() {
            let (packed, dense) = pair(&device, &case, 6, 5);
            let wide = random([4, 3, 14], &device);
            let x = || wide.clone().narrow(2, 5, 6).swap_dims(0, 1);
            let expected = Proj::new(dense).forward(x(), &Pass::new());
            assert_close(packed.forward(x(), &Pass::new()), expected, "strided");
        }
    }
}

#[test]
fn a_bias_that_is_trained_receives_its_gradient() {
    for device in devices() {
        let bias = Param::from_tensor(random([5], &device));
        let weight = vec![0.5; 15];
        let layer = PackedLinear::pack(&weight, [5, 3], &Nf4::default(), Some(bias), &device);
        let y = Projection::forward(&layer, random([2, 4, 3], &device), &Pass::new());
        let grads = y.sum().backward();
        let gradient = layer
            .bias
            .unwrap()
            .val()
            .grad(&grads)
            .expect("a gradient of the bias");
        gradient
            .into_data()
            .assert_eq(&TensorData::from([8.0f32; 5]), false);
    }
}

#[test]
fn nothing_of_a_packed_weight_is_ever_trained() {
    for device in devices() {
        for (case, parts) in [(nf4(), 5), (eight_bit(), 3)] {
            let (packed, _) = pair(&device, &case, 9, 11);
            let packed = packed.valid().train();
            let rows = state::parameters(&packed);
            assert_eq!(rows.len(), parts, "codes, the parts of the scales, bias");
            assert!(rows.iter().all(|row| !row.trainable), "{rows:?}");
        }
    }
}

#[test]
fn the_weight_takes_the_bytes_of_the_closed_form() {
    for_each_case(|device, case, [_, d_in, d_out]| {
        let (packed, _) = pair(device, case, d_in, d_out);
        let rows = state::parameters(&packed);
        let weight = rows
            .iter()
            .filter(|row| row.name != "bias")
            .map(|row| row.bytes)
            .sum::<usize>();
        assert_eq!(weight, case.storage.bytes((d_in, d_out)));
    });
    let bits =
        |storage: &dyn Storage| storage.bytes((1 << 12, 1 << 12)) as f64 * 8.0 / f64::from(1 << 24);
    assert!((bits(&Nf4::default()) - 4.127).abs() < 1e-3);
    assert_eq!(bits(&Fp4::new(64, false)), 4.5);
    assert_eq!(bits(&Int8 {}), 8.0 + 32.0 / 4096.0);
}

#[test]
fn half_precision_inputs_get_half_precision_outputs() {
    let device = Device::flex();
    for case in [nf4(), eight_bit()] {
        let (packed, dense) = pair(&device, &case, 40, 8);
        let x = random([1, 3, 40], &device);
        let bias = dense
            .bias
            .clone()
            .map(|b| Param::from_tensor(b.val().cast(DType::F16)));
        let mut half: PackedLinear = packed.downcast_ref::<PackedLinear>().unwrap().clone();
        half.bias = bias;
        let y = Projection::forward(&half, x.clone().cast(DType::F16), &Pass::new());
        assert_eq!(y.dtype(), DType::F16);
        let expected = Proj::new(dense).forward(x, &Pass::new());
        let distance = relative_distance(&y.cast(DType::F32).into_data(), &expected.into_data());
        assert!(distance < 5e-3, "{distance}");
    }
}

fn pack_error(storage: &dyn Storage, weight: Vec<f32>) -> CoreError {
    let weight = Tensor::<2>::from_data(TensorData::new(weight, [3, 2]), &Device::flex());
    storage
        .pack(&site(3, 2), Dense::new(weight, None))
        .unwrap_err()
}

#[test]
fn a_weight_that_is_not_finite_is_refused_with_its_layer_and_place() {
    let error = pack_error(&Nf4::default(), vec![0.0, 1.0, 2.0, f32::NAN, 4.0, 5.0]).to_string();
    // Row 1 of [d_in, d_out] and column 1: in PyTorch's [out, in] the same place.
    assert!(
        error.contains("`h.0.mlp.up.weight[1, 1]` is NaN"),
        "{error}"
    );
}

#[test]
fn a_weight_that_16_bits_do_not_hold_is_refused_by_int8_with_its_place() {
    let error = pack_error(&Int8 {}, vec![0.0, 1.0, 2.0, 3.0, 7e4, 5.0]).to_string();
    // Row 2 of [d_in, d_out] and column 0: in PyTorch's [out, in] at [0, 2].
    assert!(
        error.contains("`h.0.mlp.up.weight[0, 2]` is 70000") && error.contains("65504"),
        "{error}"
    );
}

#[test]
fn an_impossible_block_size_is_refused_with_its_layer_and_what_is_allowed() {
    let error = pack_error(&Nf4::new(63, true), vec![0.0; 6]).to_string();
    for part in [
        "`block_size`",
        "`h.0.mlp.up`",
        "63",
        "a power of two from 32 to 4096",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_misspelt_key_of_the_storage_is_an_error_that_names_it() {
    let error = serde_json::from_str::<Nf4>(r#"{"blocksize": 64}"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("blocksize") && error.contains("block_size"),
        "{error}"
    );
    assert_eq!(serde_json::from_str::<Nf4>("{}").unwrap(), Nf4::default());
    let text = serde_json::to_string(&Fp4::default()).unwrap();
    assert_eq!(text, r#"{"block_size":64,"double_quant":true}"#);
}
