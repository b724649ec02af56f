use super::*;
use crate::{Houlsby, Pfeiffer};

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
