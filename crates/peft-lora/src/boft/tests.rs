use super::*;
use crate::cayley::cayley;
use crate::family::testing::{computes, device, largest, site, stirred};
use burn::module::Module;
use burn::tensor::TensorData;
use peft_core::contract::random;
use peft_core::{Pass, Role};

peft_core::contract_tests!(Boft);

/// The permutation of a factor as a matrix: row `i` has its one at the feature that comes to `i`.
fn permutation(width: usize, factor: usize, size: usize) -> Tensor<2> {
    let (chunk, half) = (size / 2, 1 << factor);
    let group = 2 * half * chunk;
    let mut values = vec![0f32; width * width];
    for row in 0..width {
        let (start, within) = (row / group * group, row % group);
        let (at, inside) = (within / chunk, within % chunk);
        let from = if at < half {
            2 * at
        } else {
            2 * (at - half) + 1
        };
        let column = match factor {
            0 => row,
            _ => start + from * chunk + inside,
        };
        values[row * width + column] = 1.0;
    }
    Tensor::from_data(TensorData::new(values, [width, width]), &device())
}

/// The rotation from matrices of the whole width.
fn plain_rotation(layer: &BoftLinear, width: usize) -> Tensor<2> {
    let any = layer.rotation.val();
    let [factors, blocks, size, _] = any.dims();
    let mut product = Tensor::<2>::eye(width, &device());
    for factor in 0..factors {
        let own = any.clone().narrow(0, factor, 1).squeeze_dim::<3>(0);
        let turned = cayley((own.clone() - own.swap_dims(1, 2)).mul_scalar(0.5));
        let mut whole = Tensor::<2>::zeros([width, width], &device());
        for block in 0..blocks {
            let at = block * size..(block + 1) * size;
            let part = turned.clone().narrow(0, block, 1).squeeze_dim::<2>(0);
            whole = whole.slice_assign([at.clone(), at], part);
        }
        let order = permutation(width, factor, size);
        product = order
            .clone()
            .matmul(whole)
            .matmul(order.transpose())
            .matmul(product);
    }
    product
}

fn check(butterfly_factors: usize, block_size: usize) {
    let boft = Boft {
        block_size,
        butterfly_factors,
        ..Boft::default()
    };
    let proj = stirred(&boft, &site(Role::Query, 16, 5));
    let layer: &BoftLinear = proj.downcast_ref().unwrap();
    let pass = Pass::new();
    let weight = plain_rotation(layer, 16).matmul(layer.base.weight(&pass));
    let weight = weight * layer.scale.val().unsqueeze();
    let bias = layer.base.bias().unwrap();
    computes(&proj, &pass, weight.clone(), bias.clone());
    let used = proj.valid();
    let steady = used.steady(&pass).unwrap();
    computes(
        &steady,
        &pass,
        weight.without_autodiff(),
        bias.without_autodiff(),
    );
}

#[test]
fn few_rows_and_many_are_turned_alike() {
    let boft = Boft {
        block_size: 4,
        butterfly_factors: 3,
        ..Boft::default()
    };
    let proj = stirred(&boft, &site(Role::Query, 32, 5));
    let layer: &BoftLinear = proj.downcast_ref().unwrap();
    assert_eq!(layer.width(), 16);
    let x = random([1, 40, 32], &device());
    let many = layer.turned(x.clone());
    for at in [0, 39] {
        let row = layer.turned(x.clone().narrow(1, at, 1));
        assert!(largest(row - many.clone().narrow(1, at, 1)) < 1e-5);
    }
    let gradient = |y: Tensor<3>| layer.rotation.grad(&y.square().sum().backward()).unwrap();
    let few = (0..40).map(|at| layer.turned(x.clone().narrow(1, at, 1)));
    let few = gradient(Tensor::cat(few.collect(), 1));
    assert!(largest(gradient(many) - few) < 1e-3);
}

#[test]
fn one_factor_turns_the_rows_of_the_weight_in_blocks() {
    check(1, 4);
}

#[test]
fn more_factors_turn_them_in_the_order_of_the_butterfly() {
    check(2, 4);
    check(3, 4);
    check(4, 2);
}

#[test]
fn blocks_and_factors_that_do_not_fit_a_layer_are_refused_with_its_path() {
    let mut init = Init::new(0, &burn::tensor::Device::flex());
    let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut init);
    let geometry = peft_core::Host::geometry(&toy);
    let refused = |block_size, butterfly_factors| {
        let boft = Boft {
            block_size,
            butterfly_factors,
            ..Boft::default()
        };
        boft.check(&geometry).unwrap_err().to_string()
    };
    let error = refused(3, 1);
    assert!(
        error.contains("`block_size` is 3") && error.contains("attn.query"),
        "{error}"
    );
    assert!(refused(4, 3).contains("`butterfly_factors` is 3"));
    assert!(refused(4, 99).contains("`butterfly_factors` is 99"));
    assert!(refused(1, 1).contains("blocks of 2 or more"));
}
