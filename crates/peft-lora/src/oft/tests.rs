use super::*;
use crate::family::testing::{computes, largest, site, stirred};
use peft_core::Role;

peft_core::contract_tests!(Oft);

#[test]
fn the_entries_above_the_diagonal_are_filled_row_by_row() {
    let device = crate::family::testing::device();
    let entries = Tensor::<2>::from_floats([[1.0, 2.0, 3.0]], &device);
    let expected = Tensor::<3>::from_floats(
        [[[0.0, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]]],
        &device,
    );
    assert_eq!(
        largest(Skew::new(3, &device).matrices(entries) - expected),
        0.0
    );
}

fn check(oft: &Oft) {
    let proj = stirred(oft, &site(Role::Query, 12, 5));
    let layer: &OftLinear = proj.downcast_ref().unwrap();
    let (pass, blocks) = (Pass::new(), layer.blocks());
    let weight = layer.base.weight(&pass);
    let [count, size, _] = blocks.dims();
    // Every block turns its own rows of the weight.
    let turned = (0..12 / size).map(|at| {
        let block = blocks.clone().narrow(0, at % count, 1).squeeze_dim::<2>(0);
        block.matmul(weight.clone().narrow(0, at * size, size))
    });
    let weight = Tensor::cat(turned.collect(), 0);
    let bias = layer.base.bias().unwrap();
    computes(&proj, &pass, weight.clone(), bias.clone());
    let steady = proj.valid().steady(&pass).unwrap();
    computes(
        &steady,
        &pass,
        weight.without_autodiff(),
        bias.without_autodiff(),
    );
}

#[test]
fn each_block_turns_its_rows_of_the_weight() {
    let of = |block_size, blocks, block_share, neumann_terms| Oft {
        block_size,
        blocks,
        block_share,
        neumann_terms,
        ..Oft::default()
    };
    check(&of(4, 0, false, 5));
    check(&of(0, 2, false, 0));
    check(&of(3, 0, true, 0));
}

#[test]
fn a_size_that_does_not_divide_the_width_becomes_the_nearest_that_does() {
    assert_eq!(nearest_divisor(12, 5), 4);
    assert_eq!(nearest_divisor(24, 7), 6);
    assert_eq!(nearest_divisor(24, 32), 24);
    assert_eq!(nearest_divisor(40, 32), 40);
    assert_eq!(nearest_divisor(13, 4), 1);
}

#[test]
fn a_width_without_divisors_is_refused_with_the_layer() {
    let mut init = Init::new(0, &burn::tensor::Device::flex());
    let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut init);
    let mut geometry = peft_core::Host::geometry(&toy);
    geometry.sites[0].d_in = 13;
    let oft = Oft {
        block_size: 4,
        ..Oft::default()
    };
    let error = oft.check(&geometry).unwrap_err().to_string();
    assert!(
        error.contains("`block_size` is 1") && error.contains("attn.query"),
        "{error}"
    );
}
