use super::*;
use crate::{Houlsby, Pfeiffer};
use peft_core::Pass;

fn houlsby(json: serde_json::Value) -> Houlsby {
    serde_json::from_value(json).unwrap()
}

#[test]
fn either_key_gives_the_width() {
    let width = |json| houlsby(json).width(0, 768).unwrap();
    assert_eq!(width(serde_json::json!({"bottleneck": 16})), 16);
    assert_eq!(width(serde_json::json!({"reduction_factor": 48})), 16);
    assert_eq!(width(serde_json::json!({"reduction_factor": 153.6})), 5);
    assert_eq!(width(serde_json::json!({})), 48);
}

#[test]
fn layers_may_have_factors_of_their_own() {
    let adapter = houlsby(serde_json::json!({"reduction_factor": {"1": 8, "default": 2}}));
    assert_eq!(adapter.width(0, 32).unwrap(), 16);
    assert_eq!(adapter.width(1, 32).unwrap(), 4);
}

#[test]
fn both_keys_together_and_impossible_values_are_refused() {
    let both = houlsby(serde_json::json!({"bottleneck": 16, "reduction_factor": 48}));
    assert!(both.width(0, 768).is_err());
    for factor in [1000.0, 0.0, -1.0] {
        let adapter = houlsby(serde_json::json!({ "reduction_factor": factor }));
        let error = adapter.width(0, 768).unwrap_err().to_string();
        assert!(error.contains("`reduction_factor` is"), "{error}");
    }
    let table = houlsby(serde_json::json!({"reduction_factor": {"0": 2}}));
    assert!(table.width(1, 768).is_err());
}

#[test]
fn defaults_are_those_of_the_paper_and_do_not_change_what_is_saved() {
    assert_eq!(Pfeiffer::default().non_linearity, Activation::Relu);
    let saved = serde_json::to_string(&Houlsby::default()).unwrap();
    assert_eq!(
        saved,
        r#"{"non_linearity":"swish","dropout":0.0,"init":"bert"}"#
    );
}

#[test]
fn a_skip_factor_scales_what_the_bottleneck_is_added_to() {
    use burn::tensor::{Device, Tensor, Tolerance};
    let mut init = Init::new(0, &Device::flex());
    let slot = |skip, init: &mut Init| {
        let scaling = Scaling::Fixed(1.0);
        let start = AdapterInit::Mam;
        Bottleneck::new((4, 2), Activation::Relu, scaling, start, init)
            .with_skip_scaling(skip, 4, init)
    };
    let x = init.normal([2, 3, 4], 1.0);
    // With a zero up projection only the skip path is left.
    let halved = slot(Scaling::Fixed(0.5), &mut init).add_to(x.clone(), x.clone(), &Pass::new());
    let expected: Tensor<3> = x.clone().mul_scalar(0.5);
    let close = Tolerance::absolute(1e-6);
    halved
        .into_data()
        .assert_approx_eq::<f32>(&expected.into_data(), close);
    let learned = slot(Scaling::learned(), &mut init).add_to(x.clone(), x.clone(), &Pass::new());
    learned
        .into_data()
        .assert_approx_eq::<f32>(&x.into_data(), close);
}

#[test]
fn stochastic_depth_leaves_whole_rows_out_while_training_and_keeps_the_mean() {
    use burn::module::Module;
    use burn::tensor::{Device, Tensor};
    let mut init = Init::new(0, &Device::flex().autodiff());
    let scaling = Scaling::Fixed(1.0);
    let bottleneck = Bottleneck::new(
        (4, 3),
        Activation::Tanh,
        scaling,
        AdapterInit::Bert,
        &mut init,
    )
    .with_stochastic_depth(0.25);
    let x = init.normal([1, 2, 4], 1.0).expand([400, 2, 4]);
    let pass = Pass::new();
    let values = |y: Tensor<3>| -> Vec<f32> { y.into_data().try_to_vec().unwrap() };
    let full = values(
        bottleneck
            .valid()
            .forward(x.clone().without_autodiff(), &pass),
    );
    let trained = values(bottleneck.forward(x, &pass));
    let mut kept = 0;
    for (ours, full) in trained.chunks(8).zip(full.chunks(8)) {
        let factor = if ours.iter().all(|v| *v == 0.0) {
            0.0
        } else {
            4.0 / 3.0
        };
        kept += usize::from(factor > 0.0);
        assert!(
            ours.iter()
                .zip(full)
                .all(|(a, b)| (a - factor * b).abs() < 1e-6)
        );
    }
    assert!((250..350).contains(&kept), "{kept} of 400 rows were kept");
}
