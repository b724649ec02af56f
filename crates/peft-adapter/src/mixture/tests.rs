use super::*;
use burn::tensor::Device;
use peft_core::{Geometry, Host, Text, contract::ContractHost, toy::Toy};

peft_core::contract_tests!(Mixture);

fn toy() -> Geometry {
    Toy::build(&mut Init::new(0, &Device::flex())).geometry()
}

/// A layer whose every weight is far from its start.
fn layer(top_k: usize, balance: f64, device: &Device) -> MixtureAdapter {
    let mut init = Init::new(4, device);
    let mut random = |shape: [usize; 2]| Param::from_tensor(init.normal(shape, 1.0));
    let (gate, down, up, up_bias) = (
        random([4, 3]),
        random([4, 6]),
        random([6, 4]),
        random([3, 4]),
    );
    MixtureAdapter {
        gate,
        down,
        down_bias: Param::from_tensor(init.normal([6], 1.0)),
        up,
        up_bias,
        dropout: DropoutConfig::new(0.0).init(),
        top_k,
        balance,
        non_linearity: Activation::Tanh,
    }
}

fn sublayer(x: &Tensor<3>) -> Sublayer<'static> {
    Sublayer {
        residual: x.clone(),
        output: x.clone(),
        norm: None,
    }
}

fn floats<const D: usize>(t: &Tensor<D>) -> Vec<f32> {
    t.clone().into_data().try_to_vec().unwrap()
}

#[test]
fn a_token_gets_the_weighted_sum_of_its_most_probable_experts() {
    let device = Device::flex();
    let layer = layer(2, 0.0, &device);
    let x = Init::new(5, &device).normal([1, 5, 4], 1.0);
    let ours = floats(&layer.forward(sublayer(&x), &Pass::new()));
    for token in 0..5 {
        let x = x.clone().narrow(1, token, 1).reshape([1, 4]);
        let p = floats(&softmax(x.clone().matmul(layer.gate.val()), 1));
        let mut order: Vec<usize> = vec![0, 1, 2];
        order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
        let mut expected = x.clone();
        for expert in &order[..2] {
            let down = layer.down.val().narrow(1, expert * 2, 2);
            let bias = layer.down_bias.val().narrow(0, expert * 2, 2);
            let h = (x.clone().matmul(down) + bias.unsqueeze()).tanh();
            let up = layer.up.val().narrow(0, expert * 2, 2);
            let u = h.matmul(up) + layer.up_bias.val().narrow(0, *expert, 1);
            expected = expected + u.mul_scalar(p[*expert]);
        }
        let error = floats(&expected)
            .into_iter()
            .zip(&ours[token * 4..])
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(error < 1e-5, "token {token}: {error}");
    }
}

#[test]
fn the_balance_is_1_for_an_even_load_and_the_number_of_experts_for_the_worst() {
    let device = Device::flex();
    let layer = layer(1, 1.0, &device);
    let rows = |rows: [[f32; 3]; 3]| Tensor::<3>::from_floats([rows], &device);
    let value = |p: [[f32; 3]; 3], c: [[f32; 3]; 3]| -> f32 {
        let loss = layer.imbalance(rows(p), rows(c), &Pass::new());
        loss.into_scalar()
    };
    let each = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    assert!((value(each, each) - 1.0).abs() < 1e-6);
    let one = [[1.0, 0.0, 0.0]; 3];
    assert!((value(one, one) - 3.0).abs() < 1e-6);
}

#[test]
fn the_balance_is_asked_for_while_training_and_leaves_padding_out() {
    let (device, training) = (Device::flex(), Device::flex().autodiff());
    let x = Init::new(5, &training).normal([1, 4, 4], 1.0);
    let loss = |layer: MixtureAdapter, x: Tensor<3>, mask: Option<Tensor<2>>| {
        let pass = Pass::new();
        pass.see(Text {
            mask,
            ..Text::default()
        });
        drop(layer.forward(sublayer(&x), &pass));
        pass.take_loss().map(Tensor::into_scalar::<f32>)
    };
    let inner = x.clone().without_autodiff();
    assert!(loss(layer(1, 0.5, &device), inner, None).is_none());
    assert!(loss(layer(1, 0.0, &training), x.clone(), None).is_none());
    let mask = Tensor::from_floats([[1.0, 1.0, 0.0, 0.0]], &training);
    let padded = loss(layer(1, 0.5, &training), x.clone(), Some(mask)).unwrap();
    let bare = loss(layer(1, 0.5, &training), x.clone().narrow(1, 0, 2), None).unwrap();
    let whole = loss(layer(1, 0.5, &training), x, None).unwrap();
    assert!((padded - bare).abs() < 1e-6 && (padded - whole).abs() > 1e-4);
}

#[test]
fn the_gate_learns_from_the_balance_to_spread_the_load() {
    let device = Device::flex().autodiff();
    let layer = layer(1, 1.0, &device);
    let x = Init::new(6, &device).normal([2, 8, 4], 1.0);
    let pass = Pass::new();
    drop(layer.forward(sublayer(&x), &pass));
    let before = pass.take_loss().unwrap();
    let slope = layer.gate.val().grad(&before.backward()).unwrap();
    let gate = layer.gate.val().inner() - slope.mul_scalar(0.5);
    let stepped = MixtureAdapter {
        gate: Param::from_tensor(Tensor::from_inner(gate)),
        ..layer
    };
    let pass = Pass::new();
    drop(stepped.forward(sublayer(&x), &pass));
    let after: f32 = pass.take_loss().unwrap().into_scalar();
    assert!(after < before.into_scalar::<f32>(), "{after}");
}

#[test]
fn more_experts_a_token_than_there_are_and_absurd_sizes_are_refused_by_name() {
    let refusal = |method: Mixture| method.check(&toy()).unwrap_err().to_string();
    for top_k in [0, 5] {
        let method = Mixture {
            top_k,
            ..Mixture::default()
        };
        assert!(refusal(method).contains("`top_k` is"));
    }
    let huge = Mixture {
        experts: 1 << 15,
        bottleneck: 1 << 15,
        ..Mixture::default()
    };
    assert!(refusal(huge).contains("`experts * bottleneck`"));
}
