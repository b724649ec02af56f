use super::*;
use crate::family::testing::{computes, device, largest, site, stirred};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::contract::{ContractHost, random};
use peft_core::toy::Toy;
use peft_core::{Adapted, Host, Pass, Role, adapt, regulate, state};

peft_core::contract_tests!(ReLora);

fn example() -> ReLora {
    ReLora {
        rank: 2,
        alpha: 3.0,
        merge_every: 2,
        merges: 2,
        rewarm_steps: 4,
        ..ReLora::default()
    }
}

fn layer(proj: &Proj) -> &ReLoraLinear {
    proj.downcast_ref().unwrap()
}

#[test]
fn a_merge_leaves_the_map_alone_and_starts_the_factors_again() {
    let proj = stirred(&example(), &site(Role::Query, 6, 5));
    let (pass, mut init) = (Pass::new(), Init::new(9, &device()));
    let before = proj.weight(&pass);
    let base = before.clone() - update(&proj);
    let merged = Proj::new(layer(&proj).clone().merged(&mut init).unwrap());
    computes(&merged, &pass, before.clone(), proj.bias().unwrap());
    let found = layer(&merged);
    assert_eq!(found.factors(), layer(&proj).factors());
    assert_eq!(largest(found.b.val()), 0.0);
    assert!(largest(found.a.val() - layer(&proj).a.val()) > 0.01);
    assert!(largest(found.a.val()) <= 1.0 / 6f32.sqrt());
    assert!(found.a.val().is_require_grad() && found.b.val().is_require_grad());
    // The sum of both updates is of twice the rank; the weight is still the base's and theirs.
    let second = stirred_again(merged);
    let expected = before + update(&second);
    computes(&second, &pass, expected.clone(), second.bias().unwrap());
    let full = Proj::new(layer(&second).clone().merged(&mut init).unwrap());
    computes(&full, &pass, expected.clone(), full.bias().unwrap());
    assert!(largest(expected - base) > 0.1);
    assert!(layer(&full).clone().merged(&mut init).is_none());
}

#[test]
fn stacks_are_left_out_while_they_hold_nothing_and_only_then() {
    let proj = stirred(&example(), &site(Role::Query, 6, 5));
    let (pass, mut init) = (Pass::new(), Init::new(9, &device()));
    let empty = layer(&proj).clone().without_empty_stacks();
    let merged = empty.clone().merged(&mut init).unwrap();
    let weight = proj.weight(&pass);
    for (own, left_out) in [
        (empty, true),
        (merged.clone(), false),
        (merged.without_empty_stacks(), false),
    ] {
        assert_eq!(own.empty, left_out);
        computes(&Proj::new(own), &pass, weight.clone(), proj.bias().unwrap());
    }
}

/// What the factors add to the weight.
fn update(proj: &Proj) -> Tensor<2> {
    let layer = layer(proj);
    layer.a.val().matmul(layer.b.val()).mul_scalar(3.0 / 2.0)
}

fn stirred_again(proj: Proj) -> Proj {
    let mut own = layer(&proj).clone();
    let noise = random([2, 5], &device());
    own.b = own
        .b
        .map(|old| (old.detach() + noise).detach().require_grad());
    Proj::new(own)
}

#[test]
fn merges_come_after_every_so_many_steps_but_the_last() {
    let method = example();
    let mut init = Init::new(1, &device());
    let toy = Toy::build(&mut init);
    let mut model = adapt(toy, &method, None, &mut init).unwrap();
    let fresh = Init::new(2, &device());
    let mut regulator = method.regulator(6, fresh).unwrap().unwrap();
    let gradients = GradientsParams::new();
    for number in 1..=6 {
        model = peft_core::contract::perturbed(model, 0.1);
        let before = logits(&model);
        let step = Step {
            number,
            gradients: &gradients,
        };
        let (next, consequences) = regulate(model, &mut *regulator, &step);
        model = next;
        let merges = number == 2 || number == 4;
        // Two targets in each of the toy's two layers, two factors each.
        let restarted = if merges { 2 * 2 * 2 } else { 0 };
        assert_eq!(consequences.restarted.len(), restarted, "step {number}");
        assert_eq!(consequences.rewarm, merges.then_some(4), "step {number}");
        assert!(largest(logits(&model) - before) < 1e-4, "step {number}");
    }
    // What was merged is in the adapter.
    let tensors = state::trained_tensors(&model);
    let mut init = Init::new(1, &device());
    let toy = Toy::build(&mut init);
    let restored = adapt(toy, &method, None, &mut init).unwrap();
    assert!(largest(logits(&restored) - logits(&model)) > 1e-2);
    let restored = state::restore(restored, tensors, "adapter").unwrap();
    assert_eq!(logits(&restored).into_data(), logits(&model).into_data());
    let trained = state::trainable_parameters(&restored);
    assert_eq!(trained, method.parameters(&restored.host.geometry()));
}

fn logits(model: &Adapted<Toy>) -> Tensor<3> {
    let ids = Tensor::from_data([[1, 5, 3, 12], [0, 7, 7, 2]], &device());
    Toy::logits(model, ids)
}

#[test]
fn plans_that_do_not_fit_are_refused_by_name() {
    let geometry = Toy::build(&mut Init::new(0, &device())).geometry();
    let init = || Init::new(0, &device());
    example().check(&geometry).unwrap();
    assert!(example().regulator(6, init()).is_ok());
    let error = example().regulator(7, init()).err().unwrap().to_string();
    assert!(
        error.contains("`merges` is 2, expected at least 3"),
        "{error}"
    );
    for (change, expected) in [
        (
            (|m| m.merge_every = 0) as fn(&mut ReLora),
            "`merge_every` is 0",
        ),
        (|m| m.merges = 0, "`merges` is 0"),
        (|m| m.merges = 5, "`merges` is 5, expected at most 4"),
    ] {
        let mut method = example();
        change(&mut method);
        let error = method.check(&geometry).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
