//! Bottleneck adapters in AdapterHub's format: `seq_bn`, `double_seq_bn`, `par_bn`.

use peft_core::{CoreError, Fields, Foreign, Geometry, Role, Rule};
use serde_json::{Value, json};

use crate::adapter::{Adapter, Kind, ReductionFactor};
use crate::bottleneck::{AdapterInit, Scaling};

/// Reads a `BnConfig`, if it describes this kind of adapter.
pub(crate) fn read<K: Kind>(fields: &mut Fields) -> Result<Option<Adapter<K>>, CoreError> {
    let flag = |key: &str| fields.peek(key).as_bool();
    let after_attention = flag("mh_adapter") == Some(true);
    let has = |role| K::ROLES.contains(&role);
    let fits = flag("output_adapter") == Some(true)
        && after_attention == has(Role::AfterAttention)
        && flag("is_parallel") == Some(K::PARALLEL)
        && flag("phm_layer") != Some(true);
    if !fits {
        return Ok(None);
    }
    for key in ["mh_adapter", "output_adapter", "is_parallel"] {
        fields.ignore(&[key]);
    }
    // What stands around the bottleneck. In a parallel adapter none of it plays a part but this.
    fields.allow("original_ln_after", &[true.into()])?;
    fields.allow("residual_before_ln", &[true.into()])?;
    fields.allow("adapter_residual_before_ln", &[false.into()])?;
    if !K::PARALLEL {
        fields.allow("original_ln_before", &[K::READS_SUM.into()])?;
    }
    // Starting values, and settings of the hypercomplex layers it does not have.
    fields.ignore(&[
        "original_ln_before",
        "init_weights_seed",
        "factorized_phm_W",
        "factorized_phm_rule",
        "hypercomplex_nonlinearity",
        "learn_phm",
        "phm_bias",
        "phm_c_init",
        "phm_dim",
        "phm_init_range",
        "phm_rank",
        "shared_W_phm",
        "shared_phm_rule",
        "inv_adapter_reduction_factor",
    ]);
    let init = match fields.take::<String>("init_weights")?.as_deref() {
        Some("mam_adapter") => AdapterInit::Mam,
        _ => AdapterInit::Bert,
    };
    Ok(Some(Adapter {
        reduction_factor: Some(fields.require::<ReductionFactor>("reduction_factor")?),
        non_linearity: fields.require("non_linearity")?,
        dropout: fields.take("dropout")?.unwrap_or(0.0),
        scaling: fields.take("scaling")?.unwrap_or(Scaling::Fixed(1.0)),
        init,
        leave_out: fields.take("leave_out")?.unwrap_or_default(),
        ..Adapter::default()
    }))
}

/// Writes the `config` and the tensor names under an adapter name.
pub(crate) fn write<K: Kind>(adapter: &Adapter<K>, geometry: &Geometry, name: &str) -> Foreign {
    let fields = json!({
        "adapter_residual_before_ln": false, "cross_adapter": false, "dropout": adapter.dropout,
        "factorized_phm_W": true, "factorized_phm_rule": false,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": match adapter.init { AdapterInit::Mam => "mam_adapter", AdapterInit::Bert => "bert" },
        "init_weights_seed": null, "inv_adapter": null, "inv_adapter_reduction_factor": null,
        "is_parallel": K::PARALLEL, "learn_phm": true, "leave_out": adapter.leave_out,
        "ln_after": false, "ln_before": false,
        "mh_adapter": K::ROLES.contains(&Role::AfterAttention),
        "non_linearity": adapter.non_linearity, "original_ln_after": true,
        "original_ln_before": K::READS_SUM, "output_adapter": true, "phm_bias": true,
        "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": false,
        "phm_rank": 1, "reduction_factor": factor(adapter, geometry), "residual_before_ln": true,
        "scaling": adapter.scaling, "shared_W_phm": false, "shared_phm_rule": true,
        "stochastic_depth": 0.0, "use_gating": false,
    });
    let mut rules = Vec::new();
    for tap in adapter.places(geometry) {
        let ours = format!("{}/adapter", tap.path);
        let theirs = format!("{}.adapters.{name}", tap.path);
        let matrix =
            |a: &str, b: &str| Rule::transposed(format!("{ours}.{a}"), format!("{theirs}.{b}"));
        let vector = |a: &str, b: &str| Rule::as_is(format!("{ours}.{a}"), format!("{theirs}.{b}"));
        rules.push(matrix("down", "adapter_down.0.weight"));
        rules.push(vector("down_bias", "adapter_down.0.bias"));
        rules.push(matrix("up", "adapter_up.weight"));
        rules.push(vector("up_bias", "adapter_up.bias"));
        if matches!(adapter.scaling, Scaling::Learned(_)) {
            rules.push(vector("scaling", "scaling"));
        }
    }
    Foreign::new(fields, rules)
}

/// The reduction factor from which AdapterHub gets this adapter's widths.
fn factor<K: Kind>(adapter: &Adapter<K>, geometry: &Geometry) -> Value {
    if let Some(factor) = &adapter.reduction_factor {
        return json!(factor);
    }
    let d = geometry.width;
    match adapter.width(0, d) {
        Ok(m) if d.is_multiple_of(m) => json!(d / m),
        // Between the factors of m and m + 1, so that rounding down cannot miss m.
        Ok(m) => json!(d as f64 / (m as f64 + 0.5)),
        Err(_) => Value::Null,
    }
}
