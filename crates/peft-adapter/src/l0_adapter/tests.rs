use super::*;
use burn::tensor::Device;
use peft_core::{Host, contract::ContractHost, toy::Toy};

peft_core::contract_tests!(L0Adapter);

/// An adapter with these gates on a device.
fn adapter(log_alpha: &[f32], switches_units: bool, device: &Device) -> GatedBottleneck {
    let mut init = Init::new(4, device);
    GatedBottleneck {
        down: Param::from_tensor(init.normal([4, 3], 1.0)),
        down_bias: Param::from_tensor(init.normal([3], 1.0)),
        up: Param::from_tensor(init.normal([3, 4], 1.0)),
        up_bias: Param::from_tensor(init.normal([4], 1.0)),
        log_alpha: Param::from_tensor(Tensor::from_floats(log_alpha, device)),
        dropout: DropoutConfig::new(0.0).init(),
        penalty: 0.5,
        switches_units,
        non_linearity: Activation::Tanh,
    }
}

fn run(adapter: &GatedBottleneck, x: &Tensor<3>, pass: &Pass<'_>) -> Vec<f32> {
    let sublayer = Sublayer {
        residual: x.clone(),
        output: x.clone(),
        norm: None,
    };
    let y = adapter.forward(sublayer, pass).into_data();
    y.try_to_vec().unwrap()
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn a_closed_gate_switches_the_adapter_off_and_an_open_one_leaves_it_as_it_is() {
    let device = Device::flex();
    let x = Init::new(5, &device).normal([1, 2, 4], 1.0);
    let input: Vec<f32> = x.clone().into_data().try_to_vec().unwrap();
    let pass = Pass::new();
    assert_close(&run(&adapter(&[-9.0], false, &device), &x, &pass), &input);
    let open = adapter(&[9.0], false, &device);
    let rows = x.clone().reshape([2, 4]);
    let h = rows.clone().matmul(open.down.val()) + open.down_bias.val().unsqueeze();
    let u = h.clone().tanh().matmul(open.up.val()) + open.up_bias.val().unsqueeze();
    let expected: Vec<f32> = (rows.clone() + u).into_data().try_to_vec().unwrap();
    assert_close(&run(&open, &x, &pass), &expected);
    // With a gate for each unit only that unit goes.
    let units = adapter(&[9.0, -9.0, 9.0], true, &device);
    let mask = Tensor::<2>::from_floats([[1.0, 0.0, 1.0]], &device);
    let u = (h.tanh() * mask).matmul(units.up.val()) + units.up_bias.val().unsqueeze();
    let expected: Vec<f32> = (rows + u).into_data().try_to_vec().unwrap();
    assert_close(&run(&units, &x, &pass), &expected);
}

#[test]
fn read_only_it_has_the_gates_in_its_weights_and_no_closed_units() {
    let device = Device::flex();
    let x = Init::new(5, &device).normal([1, 2, 4], 1.0);
    let gates: [(&[f32], bool, usize); 4] = [
        (&[0.3], false, 3),
        (&[-9.0], false, 1),
        (&[0.3, -9.0, 9.0], true, 2),
        (&[-9.0; 3], true, 1),
    ];
    for (log_alpha, switches_units, units) in gates {
        let adapter = adapter(log_alpha, switches_units, &device);
        let settled = adapter.settled(&Pass::new()).unwrap();
        // Two matrices of 4, and the biases.
        let values = peft_core::state::parameters(&settled);
        let values: usize = values.iter().map(|row| row.bytes / 4).sum();
        assert_eq!(values, 2 * 4 * units + units + 4, "{log_alpha:?}");
        let sublayer = Sublayer {
            residual: x.clone(),
            output: x.clone(),
            norm: None,
        };
        let found = TapSlot::apply(Some(&settled), sublayer, &Pass::new()).into_data();
        let found: Vec<f32> = found.try_to_vec().unwrap();
        assert_close(&found, &run(&adapter, &x, &Pass::new()));
    }
}

#[test]
fn gates_drawn_while_training_are_0_as_often_as_the_penalty_says() {
    let device = Device::flex().autodiff();
    for log_alpha in [-1.5, 0.0, 1.0] {
        let gates = adapter(&vec![log_alpha; 20_000], true, &device);
        let drawn: Vec<f32> = gates.gates().into_data().try_to_vec().unwrap();
        assert!(drawn.iter().all(|z| (0.0..=1.0).contains(z)));
        let open = drawn.iter().filter(|z| **z > 0.0).count() as f32 / 20_000.0;
        let said: f32 = gates.open().into_scalar();
        assert!((open - said).abs() < 0.02, "{log_alpha}: {open}, {said}");
    }
}

#[test]
fn the_penalty_is_asked_for_while_training_only_and_closes_gates() {
    let training = Device::flex().autodiff();
    let gates = adapter(&[0.0], false, &training);
    let x = Init::new(5, &training).normal([1, 2, 4], 1.0);
    let pass = Pass::new();
    drop(run(&gates, &x, &pass));
    let loss = pass.take_loss().unwrap();
    let expected = 0.5 * gates.open().into_scalar::<f32>();
    assert!((loss.clone().into_scalar::<f32>() - expected).abs() < 1e-6);
    let slope = gates.log_alpha.val().grad(&loss.backward()).unwrap();
    assert!(slope.into_scalar::<f32>() > 0.0);
    let pass = Pass::new();
    drop(run(&gates.valid(), &x.without_autodiff(), &pass));
    assert!(pass.take_loss().is_none());
}

#[test]
fn a_penalty_below_0_is_refused_by_name() {
    let toy = Toy::build(&mut Init::new(0, &Device::flex())).geometry();
    let method = L0Adapter {
        penalty: -1.0,
        ..L0Adapter::default()
    };
    let error = method.check(&toy).unwrap_err().to_string();
    assert!(error.contains("`penalty` is -1"), "{error}");
}
