use super::*;
use crate::family::testing::{computes, device, site, stirred};
use burn::tensor::TensorData;
use peft_core::Role;

peft_core::contract_tests!(Miss);

fn example(rank: usize, variant: Variant, mini_rank: Option<usize>) -> Miss {
    Miss {
        rank,
        variant,
        mini_rank,
        ..Miss::default()
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Checks that the layer adds `update(row, column)` to a weight of `[8, 12]`.
fn adds(proj: &Proj, base: &Proj, update: impl Fn(usize, usize) -> f32) {
    let update = (0..8 * 12).map(|at| update(at / 12, at % 12)).collect();
    let update = Tensor::<2>::from_data(TensorData::new(update, [8, 12]), &device());
    let pass = Pass::new();
    let weight = base.weight(&pass) + update;
    computes(proj, &pass, weight, base.bias().unwrap());
}

#[test]
fn every_shard_of_the_input_meets_the_same_matrix_and_the_last_a_part_of_it() {
    let proj = stirred(
        &example(3, Variant::Balance, None),
        &site(Role::Query, 8, 12),
    );
    let layer: &MissLinear = proj.downcast_ref().unwrap();
    let block = values(layer.block.val());
    adds(&proj, &layer.base, |row, column| {
        block[row % 3 * 12 + column]
    });
}

#[test]
fn the_columns_of_mini_repeat_over_the_outputs() {
    let proj = stirred(
        &example(4, Variant::Mini, Some(3)),
        &site(Role::Query, 8, 12),
    );
    let layer: &MissLinear = proj.downcast_ref().unwrap();
    let block = values(layer.block.val());
    adds(&proj, &layer.base, |row, column| {
        block[row % 4 * 3 + column % 3]
    });
}

#[test]
fn blocks_of_bat_mix_the_weights_of_every_shard() {
    let proj = stirred(&example(4, Variant::Bat, None), &site(Role::Query, 8, 12));
    let layer: &BatLinear = proj.downcast_ref().unwrap();
    let (weight, blocks) = (
        values(layer.base.weight(&Pass::new())),
        values(layer.blocks.val()),
    );
    adds(&proj, &layer.base, |row, column| {
        let block = |from: usize| blocks[column / 4 * 16 + from * 4 + row % 4];
        let mixed = |from: usize| weight[(row / 4 * 4 + from) * 12 + column] * block(from);
        block(column % 4) + (0..4).map(mixed).sum::<f32>()
    });
}

#[test]
fn a_rank_that_cuts_no_whole_blocks_is_refused_with_the_layer() {
    let mut init = peft_core::Init::new(0, &burn::tensor::Device::flex());
    let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut init);
    let geometry = peft_core::Host::geometry(&toy);
    let refused = |miss: Miss| miss.check(&geometry).unwrap_err().to_string();
    let error = refused(example(3, Variant::Bat, None));
    assert!(
        error.contains("`rank` is 3") && error.contains("attn.query"),
        "{error}"
    );
    let error = refused(example(2, Variant::Mini, Some(3)));
    assert!(error.contains("`mini_rank` is 3"), "{error}");
    let error = refused(example(9, Variant::Balance, None));
    assert!(error.contains("at most 8"), "{error}");
}
