use super::*;
use crate::family::testing::{device, largest, site, stirred};
use peft_core::contract::random;
use peft_core::{Role, Text};

peft_core::contract_tests!(MoLora);

fn layer(top_k: Option<usize>) -> (Proj, MoLoraLinear) {
    let molora = MoLora {
        rank: 2,
        alpha: 3.0,
        experts: 3,
        top_k,
        balance: 0.5,
        ..MoLora::default()
    };
    let proj = stirred(&molora, &site(Role::Query, 6, 5));
    let layer = proj.downcast_ref::<MoLoraLinear>().unwrap().clone();
    (proj, layer)
}

/// The experts one by one, each with the gate of every token.
fn composed(layer: &MoLoraLinear, x: &Tensor<3>, gates: Tensor<3>) -> Tensor<3> {
    let mut y = layer.base.forward(x.clone(), &Pass::new());
    for at in 0..3 {
        let a = layer.a.val().narrow(1, 2 * at, 2).unsqueeze();
        let b = layer.b.val().narrow(0, 2 * at, 2).unsqueeze();
        let gate = gates.clone().narrow(2, at, 1).mul_scalar(3.0 / 2.0);
        y = y + x.clone().matmul(a).matmul(b) * gate;
    }
    y
}

#[test]
fn every_token_gets_the_experts_in_the_shares_of_its_gates() {
    let (proj, layer) = layer(None);
    let x = random([2, 4, 6], &device());
    let logits = x.clone().matmul(layer.router.val().unsqueeze());
    let exps = logits.exp();
    let gates = exps.clone() / exps.sum_dim(2);
    let expected = composed(&layer, &x, gates);
    let pass = Pass::new();
    assert!(largest(proj.forward(x, &pass) - expected) < 1e-4);
    assert!(pass.take_loss().is_none());
}

#[test]
fn the_lightest_expert_is_left_out_where_two_are_kept() {
    let (proj, layer) = layer(Some(2));
    let x = random([2, 4, 6], &device());
    let gates = softmax(x.clone().matmul(layer.router.val().unsqueeze()), 2);
    let lightest = gates.clone().min_dim(2);
    let kept = gates.clone() * gates.greater(lightest).float();
    let expected = composed(&layer, &x, kept);
    assert!(largest(proj.forward(x, &Pass::new()) - expected) < 1e-4);
}

fn imbalance(logits: [[f32; 3]; 4], mask: Option<Tensor<2>>) -> f32 {
    let (_, mut layer) = layer(Some(1));
    // The input's first entries are the logits.
    let router = Tensor::<2>::eye(6, &device()).narrow(1, 0, 3);
    layer.router = Param::from_tensor(router);
    let logits = Tensor::<2>::from_data(logits, &device());
    let x = Tensor::cat(vec![logits, Tensor::zeros([4, 3], &device())], 1);
    let pass = Pass::new();
    pass.see(Text {
        mask,
        ..Text::default()
    });
    layer.gates(x.reshape([1, 4, 6]), &pass);
    pass.take_loss().expect("a loss").into_scalar()
}

#[test]
fn the_loss_of_uneven_experts_counts_choices_and_gates_and_no_padding() {
    // All tokens on one expert, with certainty: as many times `balance` as there are experts.
    let one = [[50.0, 0.0, 0.0]; 4];
    assert!((imbalance(one, None) - 0.5 * 3.0).abs() < 1e-4);
    // Three tokens, an expert each; the fourth is padding.
    let even = [
        [50.0, 0.0, 0.0],
        [0.0, 50.0, 0.0],
        [0.0, 0.0, 50.0],
        [50.0, 0.0, 0.0],
    ];
    let mask = Tensor::from_data([[1.0, 1.0, 1.0, 0.0]], &device());
    assert!((imbalance(even, Some(mask)) - 0.5).abs() < 1e-4);
    assert!(imbalance(even, None) > 0.5);
}
