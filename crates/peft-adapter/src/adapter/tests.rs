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

/// What Python's `d // factor` is for d = 64, 128, ... 1024.
const FLOORS: [(f64, [usize; 16]); 6] = [
    (
        1.6,
        [
            39, 79, 119, 159, 199, 239, 279, 319, 359, 399, 439, 479, 519, 559, 599, 639,
        ],
    ),
    (
        3.2,
        [
            19, 39, 59, 79, 99, 119, 139, 159, 179, 199, 219, 239, 259, 279, 299, 319,
        ],
    ),
    (
        6.4,
        [
            9, 19, 29, 39, 49, 59, 69, 79, 89, 99, 109, 119, 129, 139, 149, 159,
        ],
    ),
    (
        12.8,
        [4, 9, 14, 19, 24, 29, 34, 39, 44, 49, 54, 59, 64, 69, 74, 79],
    ),
    (
        25.6,
        [2, 4, 7, 9, 12, 14, 17, 19, 22, 24, 27, 29, 32, 34, 37, 39],
    ),
    (153.6, [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6]),
];

#[test]
fn widths_from_factors_are_those_python_has() {
    for (factor, floors) in FLOORS {
        let adapter = houlsby(serde_json::json!({ "reduction_factor": factor }));
        for (index, expected) in floors.into_iter().enumerate() {
            let d = 64 * (index + 1);
            assert_eq!(floor_div(d, factor), expected as f64, "{d} // {factor}");
            assert_eq!(
                adapter.width(0, d).unwrap_or(0),
                expected,
                "{d} // {factor}"
            );
        }
    }
    assert_eq!(floor_div(7, 2.0), 3.0);
}

#[test]
fn layers_without_an_adapter_need_no_factor() {
    use peft_core::{Host, contract::ContractHost, toy::Toy};
    let toy = Toy::build(&mut Init::new(0, &burn::tensor::Device::flex())).geometry();
    let table = |leave_out| {
        let config = serde_json::json!({"reduction_factor": {"0": 2}, "leave_out": leave_out});
        houlsby(config).check(&toy)
    };
    assert!(table(vec![1]).is_ok());
    let error = table(vec![]).unwrap_err().to_string();
    assert!(error.contains("the key `default` or `1`"), "{error}");
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
