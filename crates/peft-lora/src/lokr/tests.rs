use super::*;
use crate::family::testing::{computes, device, site, stirred};
use burn::tensor::TensorData;
use peft_core::Role;

peft_core::contract_tests!(Lokr);

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

fn check_against_plain_kronecker(lokr: &Lokr, ranks: [Option<usize>; 2]) {
    let site = site(Role::Query, 12, 8);
    let (of_small, of_large) = lokr.shapes(&site);
    assert_eq!([of_small.rank, of_large.rank], ranks);
    let proj = stirred(lokr, &site);
    let layer: &LokrLinear = proj.downcast_ref().unwrap();
    let (small, large) = (values(layer.small.matrix()), values(layer.large.matrix()));
    let (so, li, lo) = (of_small.d_out, of_large.d_in, of_large.d_out);
    let entry = |at: usize| {
        let (row, column) = (at / 8, at % 8);
        small[row / li * so + column / lo] * large[row % li * lo + column % lo]
    };
    let update: Vec<f32> = (0..12 * 8).map(entry).collect();
    let update = Tensor::<2>::from_data(TensorData::new(update, [12, 8]), &device());
    let pass = Pass::new();
    let scaling = lokr.alpha / lokr.rank as f64;
    let weight = layer.base.weight(&pass) + update.mul_scalar(scaling);
    computes(&proj, &pass, weight, layer.base.bias().unwrap());
}

#[test]
fn whole_and_low_rank_factors_give_the_kronecker_product() {
    let lokr = Lokr {
        rank: 1,
        alpha: 3.0,
        ..Lokr::default()
    };
    check_against_plain_kronecker(&lokr, [None, Some(1)]);
    let whole = Lokr {
        rank: 5,
        ..lokr.clone()
    };
    check_against_plain_kronecker(&whole, [None, None]);
    let both = Lokr {
        decompose_both: true,
        ..lokr
    };
    check_against_plain_kronecker(&both, [Some(1), Some(1)]);
}

#[test]
fn numbers_are_factorised_as_lycoris_does() {
    assert_eq!(factorised(256, None), (16, 16));
    assert_eq!(factorised(128, None), (8, 16));
    assert_eq!(factorised(127, None), (1, 127));
    assert_eq!(factorised(128, Some(4)), (4, 32));
    assert_eq!(factorised(16, Some(8)), (8, 2));
    assert_eq!(factorised(100, Some(7)), (5, 20));
    assert_eq!(factorised(96, None), (8, 12));
}
