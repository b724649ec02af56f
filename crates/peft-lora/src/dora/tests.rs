use super::*;
use crate::family::testing::{computes, largest, site, stirred};
use burn::tensor::activation::sigmoid;
use peft_core::Role;
use peft_core::contract::random;

peft_core::contract_tests!(Dora);

fn example(dropout: f64) -> Dora {
    Dora {
        rank: 3,
        alpha: 5.0,
        dropout,
        ..Dora::default()
    }
}

#[test]
fn it_computes_with_columns_of_the_trained_magnitude() {
    let proj = stirred(&example(0.0), &site(Role::Query, 6, 5));
    let layer: &DoraLinear = proj.downcast_ref().unwrap();
    let pass = Pass::new();
    let update = layer.a.val().matmul(layer.b.val()).mul_scalar(5.0 / 3.0);
    let v = layer.base.weight(&pass) + update;
    let norms = v.clone().square().sum_dim(0).sqrt();
    let weight = v / norms * layer.magnitude.val().unsqueeze();
    computes(&proj, &pass, weight, layer.base.bias().unwrap());
}

#[test]
fn a_dropout_that_drops_next_to_nothing_changes_next_to_nothing() {
    let proj = stirred(&example(1e-9), &site(Role::Query, 6, 5));
    let layer: &DoraLinear = proj.downcast_ref().unwrap();
    let x = random([2, 3, 6], &crate::family::testing::device());
    assert!(layer.drops(&x));
    let expected = layer
        .valid()
        .forward(x.clone().without_autodiff(), &Pass::new());
    let found = layer.forward(x, &Pass::new()).without_autodiff();
    assert!(largest(found - expected) < 1e-4);
}

#[test]
fn the_norm_is_a_constant_in_the_backward_pass() {
    let proj = stirred(&example(0.0), &site(Role::Query, 6, 5));
    let layer: &DoraLinear = proj.downcast_ref().unwrap();
    let pass = Pass::new();
    let x = random([2, 3, 6], &crate::family::testing::device());
    let norms = layer.norms(&pass);
    let update = layer.a.val().matmul(layer.b.val()).mul_scalar(5.0 / 3.0);
    let weight = (layer.base.weight(&pass) + update) * (layer.magnitude.val() / norms).unsqueeze();
    let plain = x.clone().matmul(weight.unsqueeze()) + layer.base.bias().unwrap().unsqueeze();
    let expected = layer.a.grad(&sigmoid(plain).sum().backward()).unwrap();
    let found = sigmoid(layer.forward(x, &pass)).sum().backward();
    assert!(largest(layer.a.grad(&found).unwrap() - expected) < 1e-4);
    assert!(layer.magnitude.grad(&found).is_some());
}

#[test]
fn a_target_that_is_trained_whole_is_refused() {
    let mut init = Init::new(0, &burn::tensor::Device::flex());
    let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut init);
    let geometry = peft_core::Host::geometry(&toy);
    let saving = |name: &str| Dora {
        modules_to_save: vec![name.into()],
        ..example(0.0)
    };
    saving("norm_2").check(&geometry).unwrap();
    let error = saving("attn").check(&geometry).unwrap_err().to_string();
    assert!(error.contains("`modules_to_save` is attn"), "{error}");
}
