//! Layers as bitsandbytes saved them, and everything that can be wrong with such a file.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::contract::relative_distance;
use peft_core::state::{self, Tensors};
use peft_core::{PackedLayer, PackedReader, Pass, Proj};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{BitsAndBytes, quantization_config, tensors};

const FILE: &[u8] = include_bytes!("../../tests/golden/layers.safetensors");
const CASES: [&str; 4] = ["nf4", "nf4-dq", "fp4-dq", "int8"];
const DIMS: (usize, usize) = (64, 24);

fn golden() -> Tensors {
    let archive = SafeTensors::deserialize(FILE).unwrap();
    let tensors = archive.iter();
    tensors
        .map(|(name, view)| (name.to_string(), state::decode(&view).unwrap()))
        .collect()
}

/// The tensors of one layer.
fn layer(case: &str) -> Tensors {
    let mut tensors = golden();
    tensors.retain(|name, _| name.starts_with(&format!("{case}.")));
    tensors
}

fn read(case: &str, tensors: &mut Tensors, dims: (usize, usize)) -> Option<Result<Proj, String>> {
    let device = Device::flex();
    let bias = tensors.remove(&format!("{case}.bias"));
    let bias = bias.map(|data| Param::from_tensor(Tensor::from_data(data, &device)));
    let layer = PackedLayer {
        path: case,
        dims,
        bias,
    };
    let read = BitsAndBytes.read(layer, tensors, &device)?;
    Some(read.map_err(|error| error.to_string()))
}

/// The error of reading a layer after a change to its tensors.
fn error(case: &str, change: impl FnOnce(&mut Tensors)) -> String {
    let mut tensors = layer(case);
    change(&mut tensors);
    let error = read(case, &mut tensors, DIMS).expect("packed").unwrap_err();
    let rest: Vec<_> = tensors
        .keys()
        .filter(|name| name.contains("weight"))
        .collect();
    assert!(rest.is_empty(), "left over: {rest:?}");
    error
}

fn state_key(case: &str) -> String {
    format!("{case}.weight.quant_state.bitsandbytes__{}", &case[..3])
}

fn json_of(tensors: &Tensors, key: &str) -> Value {
    serde_json::from_slice(&tensors[key].clone().try_to_vec::<u8>().unwrap()).unwrap()
}

fn put_json(tensors: &mut Tensors, key: &str, value: &Value) {
    let bytes = serde_json::to_vec(value).unwrap();
    let len = bytes.len();
    tensors.insert(key.into(), TensorData::new(bytes, [len]));
}

#[test]
fn a_layer_of_bitsandbytes_computes_what_bitsandbytes_computes() {
    let golden = golden();
    for case in CASES {
        let mut tensors = layer(case);
        let proj = read(case, &mut tensors, DIMS).unwrap().unwrap();
        assert!(tensors.is_empty(), "{case}: {:?}", tensors.keys());
        let x = Tensor::<2>::from_data(golden["x"].clone(), &Device::flex()).unsqueeze::<3>();
        let y = proj.forward(x, &Pass::new()).into_data();
        let distance = relative_distance(&y, &golden[&format!("{case}/y")]);
        assert!(distance < 1e-5, "{case}: {distance}");
    }
}

#[test]
fn what_was_read_is_written_again_byte_for_byte() {
    for case in CASES {
        let mut before = layer(case);
        before.remove(&format!("{case}.bias"));
        let proj = read(case, &mut before.clone(), DIMS).unwrap().unwrap();
        let mut after = tensors(case, &proj, "float32").unwrap();
        if case != "int8" {
            // The same JSON; spaces may differ.
            let key = state_key(case);
            assert_eq!(json_of(&before, &key), json_of(&after, &key), "{case}");
            before.remove(&key);
            after.remove(&key);
        }
        assert_eq!(before, after, "{case}");
    }
}

#[test]
fn plain_weights_are_left_to_the_model() {
    let weight = TensorData::zeros::<f32, _>([24, 64]);
    let mut tensors = BTreeMap::from([("nf4.weight".to_string(), weight)]);
    assert!(read("nf4", &mut tensors, DIMS).is_none());
    assert_eq!(tensors.len(), 1);
}

#[test]
fn tensors_of_other_shapes_are_refused_by_name() {
    let cases = [
        ("nf4", "nf4.weight", "768 values"),
        ("nf4", "nf4.weight.absmax", "24 values"),
        ("nf4-dq", "nf4-dq.weight.absmax", "24 values"),
        ("nf4-dq", "nf4-dq.weight.nested_absmax", "1 values"),
        ("nf4-dq", "nf4-dq.weight.nested_quant_map", "256 values"),
        ("int8", "int8.SCB", "24 values"),
        ("int8", "int8.weight", "[24, 64]"),
    ];
    for (case, name, expected) in cases {
        let short = error(case, |tensors| {
            let dtype = tensors[name].dtype();
            let data = TensorData::zeros::<f32, _>([3]).convert_dtype(dtype);
            tensors.insert(name.into(), data);
        });
        assert!(short.contains(name) && short.contains(expected), "{short}");
        let absent = error(case, |tensors| drop(tensors.remove(name)));
        assert!(absent.contains(case), "{absent}");
    }
    let turned = read("int8", &mut layer("int8"), (24, 64)).unwrap();
    assert!(turned.unwrap_err().contains("[64, 24]"));
}

#[test]
fn a_weight_of_another_type_is_refused_by_name() {
    // Codes in the bytes of floats, as `bnb_4bit_quant_storage = "bfloat16"` keeps them.
    let floats = TensorData::zeros::<f32, _>([384, 1]);
    let found = error("nf4", |t| drop(t.insert("nf4.weight".into(), floats)));
    assert!(found.contains("`nf4.weight` is F32"), "{found}");
    let bytes = TensorData::zeros::<u8, _>([24, 64]);
    let found = error("int8", |t| drop(t.insert("int8.weight".into(), bytes)));
    assert!(found.contains("`int8.weight` is U8"), "{found}");
}

#[test]
fn a_quantisation_state_that_makes_no_sense_is_refused_with_the_key() {
    let changes = [
        ("quant_type", json!("nf3"), "`nf3`"),
        (
            "quant_type",
            json!("fp4"),
            "the same as in the tensor's name",
        ),
        ("blocksize", json!(0), "`blocksize` 0"),
        ("blocksize", json!(48), "`blocksize` 48"),
        (
            "blocksize",
            json!(1u64 << 62),
            "power of two from 32 to 4096",
        ),
        ("blocksize", json!(-64), "no such JSON"),
        ("shape", json!([64, 24]), "[24, 64]"),
        ("shape", json!(null), "no such JSON"),
        ("nested_blocksize", json!(128), "`nested_blocksize` 128"),
        ("nested_offset", json!(1e300), "finite"),
    ];
    let key = state_key("nf4-dq");
    for (name, value, expected) in changes {
        let found = error("nf4-dq", |tensors| {
            let mut state = json_of(tensors, &key);
            state[name] = value;
            put_json(tensors, &key, &state);
        });
        assert!(found.contains(&key) && found.contains(expected), "{found}");
    }
}

#[test]
fn bytes_that_are_no_json_are_refused_with_the_tensor() {
    let key = state_key("nf4");
    for bytes in [
        &b"{\"quant_type\": "[..],
        b"",
        b"\xff\xfe",
        b"[[[[",
        b"{\"a\": NaN}",
    ] {
        let data = TensorData::new(bytes.to_vec(), [bytes.len()]);
        let found = error("nf4", |t| drop(t.insert(key.clone(), data)));
        assert!(found.contains(&key) && found.contains("JSON"), "{found}");
    }
    let absent = error("nf4", |t| drop(t.remove(&key)));
    assert!(absent.contains("bitsandbytes__nf4"), "{absent}");
}

#[test]
fn tables_other_than_the_standard_ones_are_refused_with_the_place() {
    let changes = [
        ("nf4.weight.quant_map", 16, 3),
        ("nf4-dq.weight.nested_quant_map", 256, 200),
    ];
    for (name, len, place) in changes {
        let case = name.split('.').next().unwrap();
        for value in [0.4321, f32::NAN] {
            let found = error(case, |tensors| {
                let mut table: Vec<f32> = tensors[name].clone().try_to_vec().unwrap();
                table[place] = value;
                tensors.insert(name.into(), TensorData::new(table, [len]));
            });
            assert!(found.contains(&format!("{name}[{place}]")), "{found}");
        }
    }
}

#[test]
fn scales_that_are_not_finite_are_refused_with_the_place() {
    for (name, len) in [("nf4.weight.absmax", 24), ("int8.SCB", 24)] {
        let case = name.split('.').next().unwrap();
        for value in [f32::NAN, f32::INFINITY] {
            let found = error(case, |tensors| {
                let mut scales = vec![1.0; len];
                scales[7] = value;
                tensors.insert(name.into(), TensorData::new(scales, [len]));
            });
            assert!(found.contains(&format!("{name}[7]")), "{found}");
        }
    }
}

#[test]
fn a_tiled_layout_and_a_stray_tensor_are_refused() {
    let tiled = TensorData::new(vec![2u8], [1]);
    let found = error("int8", |t| {
        drop(t.insert("int8.weight_format".into(), tiled))
    });
    assert!(found.contains("`int8.weight_format` is 2"), "{found}");
    let stray = TensorData::zeros::<f32, _>([1]);
    let found = error("nf4", |t| drop(t.insert("nf4.weight.nested".into(), stray)));
    assert!(found.contains("`nf4.weight.nested`"), "{found}");
}

#[test]
fn the_configuration_says_how_the_layers_are_packed() {
    let dense = ["lm_head".to_string()];
    let config = |case: &str| {
        let proj = read(case, &mut layer(case), DIMS).unwrap().unwrap();
        quantization_config(&proj, &dense).unwrap()
    };
    let fp4 = config("fp4-dq");
    assert_eq!(fp4["bnb_4bit_quant_type"], "fp4");
    assert_eq!(fp4["bnb_4bit_use_double_quant"], true);
    assert_eq!(fp4["load_in_4bit"], true);
    assert_eq!(fp4["llm_int8_skip_modules"], json!(["lm_head"]));
    assert_eq!(config("nf4")["bnb_4bit_use_double_quant"], false);
    let int8 = config("int8");
    assert_eq!(int8["load_in_8bit"], true);
    assert_eq!(int8["llm_int8_threshold"], 6.0);
}
