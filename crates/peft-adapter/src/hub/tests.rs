use super::*;
use crate::{AdapterPlus, Compacter, Houlsby, LoReft, Parallel, Pfeiffer};
use burn::tensor::Device;
use peft_core::contract::ContractHost;
use peft_core::{Host, Init, Method, MethodConfig, toy::Toy};

fn toy() -> Geometry {
    Toy::build(&mut Init::new(0, &Device::flex())).geometry()
}

/// Reads a `config` as whoever asks the methods does.
fn read<M: MethodConfig>(config: Value) -> Result<Option<M>, String> {
    let Value::Object(values) = config else {
        panic!("{config} is no table")
    };
    let mut fields = Fields::new("config.json", values);
    let read = M::from_adapter_hub(&mut fields, &toy()).map_err(|e| e.to_string())?;
    fields.ignore(&["architecture"]);
    match &read {
        Some(_) => fields.finish().map_err(|e| e.to_string())?,
        None => {}
    }
    Ok(read)
}

/// A configuration as AdapterHub's first releases wrote it.
fn early() -> Value {
    json!({
        "adapter_residual_before_ln": false, "attention_type": "sent-lvl-dynamic",
        "invertible_adapter": null, "ln_after": false, "ln_before": false, "mh_adapter": false,
        "new_attention_norm": false, "non_linearity": "relu", "original_ln_after": true,
        "original_ln_before": true, "output_adapter": true, "reduction_factor": 4,
        "residual_before_ln": true,
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn a_configuration_of_before_parallel_adapters_is_of_adapters_in_a_row() {
    let read_one = read::<Pfeiffer>(early()).unwrap().unwrap();
    let expected = Pfeiffer {
        reduction_factor: Some(ReductionFactor::Whole(4)),
        ..Pfeiffer::default()
    };
    assert_eq!(read_one, expected);
    assert!(read::<Parallel>(early()).unwrap().is_none());
    let both = with(early(), "mh_adapter", true.into());
    let both = with(both, "original_ln_before", false.into());
    assert!(read::<Houlsby>(both).unwrap().is_some());
}

#[test]
fn switches_that_are_left_out_are_at_the_defaults_of_adapterhub() {
    let without = |key: &str| {
        let mut config = early();
        config.as_object_mut().unwrap().remove(key);
        read::<Pfeiffer>(config)
    };
    for on in ["original_ln_after", "residual_before_ln"] {
        assert!(without(on).unwrap().is_some(), "{on}");
    }
    let error = without("original_ln_before").unwrap_err();
    let said = "`original_ln_before` of `config.json` is false, expected `true`";
    assert!(error.contains(said), "{error}");
    let plus = json!({
        "mh_adapter": false, "output_adapter": true, "reduction_factor": 4,
        "non_linearity": "gelu", "original_ln_after": false, "original_ln_before": true,
    });
    let error = read::<AdapterPlus>(plus).unwrap_err();
    assert!(error.contains("`residual_before_ln` of"), "{error}");
}

#[test]
fn an_early_invertible_adapter_is_read_and_refused_as_one_of_today() {
    let table = json!({"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2});
    // The toy generates text, and there AdapterHub applies no inverse.
    let error = read::<Pfeiffer>(with(early(), "invertible_adapter", table)).unwrap_err();
    assert!(error.contains("`inv_adapter` of"), "{error}");
}

#[test]
fn stochastic_depth_of_a_compacter_is_refused_by_its_name() {
    let compacter = |probability: f64| {
        let compacter = Compacter {
            bottleneck: Some(4),
            ..Compacter::default()
        };
        let form = compacter.adapter_hub(&toy(), "x").unwrap();
        let config = with(
            Value::Object(form.fields),
            "stochastic_depth",
            probability.into(),
        );
        read::<Compacter>(config)
    };
    assert!(compacter(0.0).unwrap().is_some());
    let error = compacter(0.1).unwrap_err();
    assert!(
        error.contains("`stochastic_depth` of `config.json` is 0.1"),
        "{error}"
    );
}

#[test]
fn direft_is_told_from_noreft_by_what_it_does_not_subtract() {
    let noreft = LoReft {
        orthogonality: false,
        ..LoReft::default()
    };
    let direft = LoReft {
        subtract_projection: false,
        ..noreft.clone()
    };
    for method in [noreft.clone(), direft] {
        let fields = method.adapter_hub(&toy(), "x").unwrap().fields;
        let again = read::<LoReft>(Value::Object(fields)).unwrap();
        assert_eq!(again, Some(method));
    }
    // What AdapterHub saves of either has no such key.
    let mut fields = noreft.adapter_hub(&toy(), "x").unwrap().fields;
    fields.remove("subtract_projection");
    assert_eq!(read::<LoReft>(Value::Object(fields)).unwrap(), Some(noreft));
}
