//! Bottleneck adapters in AdapterHub's format: `seq_bn`, `double_seq_bn`, `par_bn`.

use peft_core::{CoreError, Fields, Foreign, Gate, Geometry, Role, Rule};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::adapter::{Adapter, Kind, ReductionFactor};
use crate::bottleneck::{AdapterInit, Scaling};
use crate::invertible::{InvAdapter, NiceCoupling};

/// Reads a `BnConfig`, if it describes this kind of adapter.
pub(crate) fn read<K: Kind>(
    fields: &mut Fields,
    geometry: &Geometry,
) -> Result<Option<Adapter<K>>, CoreError> {
    if fields.peek("phm_layer") == true || !fits::<K>(fields) {
        return Ok(None);
    }
    // Settings of the hypercomplex layers it does not have.
    fields.ignore(&[
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
    ]);
    spell_out_invertible(fields)?;
    if is_language_model(geometry) {
        // AdapterHub's language models apply no inverse before the head.
        fields.allow("inv_adapter", &[])?;
    }
    let inv_adapter: Option<InvAdapter> = fields.take("inv_adapter")?;
    let factor = fields.take("inv_adapter_reduction_factor")?;
    let gating = Gate::from_adapter_hub(fields, geometry)?;
    Ok(Some(Adapter {
        inv_adapter,
        inv_adapter_reduction_factor: factor.filter(|_| inv_adapter.is_some()),
        gating,
        counts_padding: gating,
        ..frame(fields)?
    }))
}

/// The keys of today for what early releases kept as one table, `invertible_adapter`.
fn spell_out_invertible(fields: &mut Fields) -> Result<(), CoreError> {
    let Some(early): Option<Map<String, Value>> = fields.take("invertible_adapter")? else {
        return Ok(());
    };
    let both = [
        ("inv_adapter", "block_type"),
        ("inv_adapter_reduction_factor", "reduction_factor"),
    ];
    for (today, before) in both {
        let value = early.get(before).cloned().unwrap_or(Value::Null);
        *fields = fields.clone().with(today, value);
    }
    Ok(())
}

/// Whether a `BnConfig` describes adapters where this kind has them.
pub(crate) fn fits<K: Kind>(fields: &Fields) -> bool {
    let flag = |key: &str| fields.peek(key).as_bool();
    let after_attention = flag("mh_adapter") == Some(true);
    let has = |role| K::ROLES.contains(&role);
    // Left out, it is on; without it the adapter's output takes the place of the layer's.
    let normalises_after = flag("original_ln_after") != Some(false);
    flag("output_adapter") == Some(true)
        && normalises_after != has(Role::AfterLayer)
        && after_attention == has(Role::AfterAttention)
        // Releases before it had no parallel adapters.
        && flag("is_parallel").unwrap_or(false) == K::PARALLEL
}

/// Takes a switch, which is at its default where the file has none, and must be as expected.
fn switch(fields: &mut Fields, key: &str, default: bool, expected: bool) -> Result<(), CoreError> {
    let given: Option<Value> = fields.take(key)?;
    let found = given.unwrap_or(default.into());
    match found == expected {
        true => Ok(()),
        false => Err(fields.unsupported(key, &found, &format!("`{expected}`"))),
    }
}

/// Reads what bottlenecks of any sort have in common.
pub(crate) fn frame<K: Kind>(fields: &mut Fields) -> Result<Adapter<K>, CoreError> {
    fields.ignore(&["mh_adapter", "output_adapter", "is_parallel"]);
    // What stands around the bottleneck. In a parallel adapter none of it plays a part but this.
    let whole = whole_layer::<K>();
    switch(fields, "original_ln_after", true, !whole)?;
    switch(fields, "residual_before_ln", true, !whole)?;
    switch(fields, "adapter_residual_before_ln", false, false)?;
    if !K::PARALLEL {
        switch(fields, "original_ln_before", false, K::READS_SUM)?;
    }
    // Starting values, a setting that plays no part in a parallel adapter, and what early releases
    // said of fusions.
    fields.ignore(&["original_ln_before", "init_weights_seed"]);
    fields.ignore(&["attention_type", "new_attention_norm"]);
    let init = match fields.take::<String>("init_weights")?.as_deref() {
        Some("mam_adapter") => AdapterInit::Mam,
        Some("houlsby") => AdapterInit::Houlsby,
        _ => AdapterInit::Bert,
    };
    let stochastic_depth = fields.take("stochastic_depth")?.unwrap_or(0.0);
    Ok(Adapter {
        // Parallel adapters have the setting there, without effect.
        stochastic_depth: if K::PARALLEL { 0.0 } else { stochastic_depth },
        reduction_factor: Some(fields.require::<ReductionFactor>("reduction_factor")?),
        non_linearity: fields.require("non_linearity")?,
        dropout: fields.take("dropout")?.unwrap_or(0.0),
        scaling: fields.take("scaling")?.unwrap_or(Scaling::Fixed(1.0)),
        init,
        leave_out: fields.take("leave_out")?.unwrap_or_default(),
        ..Adapter::default()
    })
}

/// Writes the `config` and the tensor names under an adapter name.
pub(crate) fn write<K: Kind>(adapter: &Adapter<K>, geometry: &Geometry, name: &str) -> Foreign {
    let fields = json!({
        "adapter_residual_before_ln": false, "cross_adapter": false, "dropout": adapter.dropout,
        "factorized_phm_W": true, "factorized_phm_rule": false,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": match adapter.init {
            AdapterInit::Mam => "mam_adapter",
            AdapterInit::Bert => "bert",
            AdapterInit::Houlsby => "houlsby",
        },
        "init_weights_seed": null, "inv_adapter": adapter.inv_adapter,
        "inv_adapter_reduction_factor": adapter.inv_factor(),
        "is_parallel": K::PARALLEL, "learn_phm": true, "leave_out": adapter.leave_out,
        "ln_after": false, "ln_before": false,
        "mh_adapter": K::ROLES.contains(&Role::AfterAttention),
        "non_linearity": adapter.non_linearity, "original_ln_after": !whole_layer::<K>(),
        "original_ln_before": K::READS_SUM, "output_adapter": true, "phm_bias": true,
        "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": false,
        "phm_rank": 1, "reduction_factor": factor(adapter, geometry), "residual_before_ln": !whole_layer::<K>(),
        "scaling": adapter.scaling, "shared_W_phm": false, "shared_phm_rule": true,
        "stochastic_depth": adapter.stochastic_depth, "use_gating": adapter.gating,
    });
    let mut rules = Vec::new();
    for tap in adapter.places(geometry) {
        let ours = format!("{}/adapter", tap.path);
        // What stands behind a whole layer they keep with its feed-forward sublayer.
        let holder = match tap.role {
            Role::AfterLayer => geometry.tap_path(tap.layer, Role::AfterMlp),
            _ => None,
        };
        let theirs = format!("{}.adapters.{name}", holder.unwrap_or(&tap.path));
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
        if adapter.gating {
            let (ours, theirs) = (format!("{ours}.gate"), format!("{theirs}.gate"));
            rules.extend(Gate::rules(&ours, &theirs));
        }
    }
    if adapter.inv_adapter.is_some() {
        rules.extend(NiceCoupling::rules(&format!(
            "{}invertible_adapters.{name}",
            body(geometry)
        )));
    }
    Foreign::new(fields, rules)
}

/// The configurations of a `union` of methods of these kinds, in their order, whatever the order in
/// the union; none where it is of others. The harness has read them: they are `parts`, each with its
/// `kind`.
pub(crate) fn union<const N: usize>(
    fields: &mut Fields,
    kinds: [&str; N],
) -> Result<Option<[Map<String, Value>; N]>, CoreError> {
    if fields.peek("architecture") != "union" {
        return Ok(None);
    }
    let mut parts: Vec<Map<String, Value>> = fields.require("parts")?;
    let place = |part: &Map<String, Value>| {
        let kind = part.get("kind").and_then(Value::as_str);
        kinds.iter().position(|known| kind == Some(known))
    };
    parts.sort_by_key(place);
    let found: Vec<_> = parts.iter().filter_map(place).collect();
    if found != (0..N).collect::<Vec<_>>() {
        return Ok(None);
    }
    parts.iter_mut().for_each(|part| drop(part.remove("kind")));
    Ok(parts.try_into().ok())
}

/// A configuration that a union gave.
pub(crate) fn config_of<M: DeserializeOwned>(config: Map<String, Value>) -> Result<M, CoreError> {
    let config = serde_json::from_value(Value::Object(config));
    config.map_err(|error| CoreError::Told(error.to_string()))
}

/// Several methods as a `union`.
pub(crate) fn as_union<const N: usize>(parts: [Foreign; N]) -> Foreign {
    let (configs, rules): (Vec<_>, Vec<_>) = parts
        .into_iter()
        .map(|part| (part.fields, part.rules))
        .unzip();
    let fields = json!({"architecture": "union", "configs": configs});
    Foreign::new(fields, rules.concat())
}

/// Whether this kind sits behind whole layers.
fn whole_layer<K: Kind>() -> bool {
    K::ROLES.contains(&Role::AfterLayer)
}

/// Whether the model's head is part of the base.
pub(crate) fn is_language_model(geometry: &Geometry) -> bool {
    geometry.task_head_parameters() == 0
}

/// What the names of the body's modules start with, its dot included: `bert.`.
pub(crate) fn body(geometry: &Geometry) -> String {
    let first = geometry.taps.first();
    let body = first.and_then(|tap| tap.path.split_once('.'));
    body.map_or_else(String::new, |(body, _)| format!("{body}."))
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

#[cfg(test)]
mod tests;
