use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::family::testing::{computes, device, largest, site, stirred};
use crate::masks::computes_under_a_mask;
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use peft_core::contract::random;
use peft_core::{Dense, Pass, Projection, Role};

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
fn what_is_dropped_is_left_out_of_the_change_and_not_of_the_base() {
    let proj = stirred(&example(0.4), &site(Role::Query, 6, 5));
    let layer: &DoraLinear = proj.downcast_ref().unwrap();
    let (x, pass) = (random([2, 3, 6], &device()), Pass::new());
    let base = layer.base.weight(&pass);
    let change = layer.weight(&pass) - base.clone();
    let bias = layer.base.bias().unwrap();
    computes_under_a_mask(
        0.4,
        &x,
        || layer.forward(x.clone(), &pass),
        |left| {
            x.clone().matmul(base.clone().unsqueeze())
                + left.matmul(change.clone().unsqueeze())
                + bias.clone().unsqueeze()
        },
    );
}

#[test]
fn a_layer_that_is_used_and_not_trained_keeps_its_norms() {
    let proj = stirred(&example(0.0), &site(Role::Query, 6, 5)).valid();
    let pass = Pass::new();
    let steady = proj.steady(&pass).unwrap();
    let layer: &DoraLinear = steady.downcast_ref().unwrap();
    assert!(layer.steady.is_some());
    computes(&steady, &pass, proj.weight(&pass), proj.bias().unwrap());
}

/// A packed layer as this one sees it: it counts how often it is applied.
#[derive(Module, Debug)]
struct Packed {
    dense: Dense,
    #[module(skip)]
    applied: Arc<AtomicUsize>,
}

impl Projection for Packed {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.applied.fetch_add(1, Ordering::Relaxed);
        Projection::forward(&self.dense, x, pass)
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        Projection::weight(&self.dense, pass)
    }
    fn bias(&self) -> Option<Tensor<1>> {
        Projection::bias(&self.dense)
    }
    fn merge(&self, _pass: &Pass<'_>) -> Option<Dense> {
        Some(self.dense.clone())
    }
    fn dims(&self) -> (usize, usize) {
        Projection::dims(&self.dense)
    }
    fn packing(&self) -> Option<String> {
        Some("in a test's way".into())
    }
}

#[test]
fn a_packed_base_is_applied_once_and_gives_the_same() {
    let proj = stirred(&example(0.0), &site(Role::Query, 6, 5));
    let layer: &DoraLinear = proj.downcast_ref().unwrap();
    let pass = Pass::new();
    let dense = Dense::new(layer.base.weight(&pass), layer.base.bias());
    let applied = Arc::new(AtomicUsize::new(0));
    let base = Proj::new(Packed {
        dense,
        applied: applied.clone(),
    });
    let mut packed = layer.clone();
    packed.base = base;
    let x = random([2, 3, 6], &device());
    let expected = layer.forward(x.clone(), &pass);
    assert!(largest(packed.forward(x.clone(), &pass) - expected.clone()) < 1e-4);
    assert_eq!(applied.swap(0, Ordering::Relaxed), 1);
    let (found, expected) = (packed.forward(x, &pass).sum(), expected.sum());
    let (found, expected) = (found.backward(), expected.backward());
    let found = packed.a.grad(&found).unwrap();
    assert!(largest(found - layer.a.grad(&expected).unwrap()) < 1e-4);
}

#[test]
fn the_norm_is_a_constant_in_the_backward_pass() {
    let proj = stirred(&example(0.0), &site(Role::Query, 6, 5));
    let layer: &DoraLinear = proj.downcast_ref().unwrap();
    let pass = Pass::new();
    let x = random([2, 3, 6], &device());
    let update = layer.a.val().matmul(layer.b.val()).mul_scalar(5.0 / 3.0);
    let v = layer.base.weight(&pass) + update;
    let norms = v.clone().square().sum_dim(0).sqrt().detach();
    let weight = v / norms * layer.magnitude.val().unsqueeze();
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
