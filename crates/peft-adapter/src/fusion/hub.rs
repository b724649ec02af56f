//! AdapterFusion in AdapterHub's format: the block `Fuse` with its `config`.

use peft_core::compose::{Part, seated};
use peft_core::{CoreError, Fields, Foreign, Geometry, Rule};
use serde_json::{Value, json};

use super::Fusion;

/// Whether AdapterHub's adapters of this kind read the residual sum, which its fusion takes for its
/// query then; none for those that its fusion has another formula for.
fn reads_sum(parts: &[Part]) -> Option<bool> {
    let mut kinds = parts.iter().map(|part| match part.kind() {
        "pfeiffer" | "compacter_plus" => Some(true),
        "houlsby" | "compacter" => Some(false),
        _ => None,
    });
    let first = kinds.next().flatten()?;
    // It fuses what comes before the gates.
    if parts
        .iter()
        .any(|part| part.config().get("gating") == Some(&true.into()))
    {
        return None;
    }
    kinds.all(|kind| kind == Some(first)).then_some(first)
}

pub(super) fn read(fields: &mut Fields) -> Result<Option<Fusion>, CoreError> {
    if fields.peek("type") != "Fuse" {
        return Ok(None);
    }
    fields.ignore(&["type"]);
    let parts: Vec<Part> = fields.require("parts")?;
    let Some(reads_sum) = reads_sum(&parts) else {
        let kinds: Vec<_> = parts.iter().map(Part::kind).collect();
        let expected = "adapters that all read the same, without gates: all `seq_bn`, or all \
                        `double_seq_bn`";
        return Err(fields.unsupported("adapters", &json!(kinds), expected));
    };
    fields.allow("residual_before", &[false.into()])?;
    fields.allow("temperature", &[false.into()])?;
    // The matrix is linear, so that it stands before the sum or behind it makes no difference.
    fields.ignore(&["value_before_softmax"]);
    let query_before_ln: bool = fields.require("query_before_ln")?;
    let value = fields.require("value")?;
    let regularization: bool = fields.require("regularization")?;
    Ok(Some(Fusion {
        parts: parts.into_iter().map(Part::frozen).collect(),
        adapters: Vec::new(),
        query: fields.require("query")?,
        key: fields.require("key")?,
        value,
        query_before_ln: query_before_ln || !reads_sum,
        value_initialized: fields.require("value_initialized")?,
        regularization: regularization && value,
        dropout: fields.take("dropout_prob")?.unwrap_or(0.0),
    }))
}

pub(super) fn write(fusion: &Fusion, geometry: &Geometry, name: &str) -> Option<Foreign> {
    let reads_sum = reads_sum(&fusion.parts)?;
    // Its adapters that do not read the sum make no query of it either.
    if !reads_sum && !fusion.query_before_ln {
        return None;
    }
    let dropout = match fusion.dropout {
        0.0 => Value::Null,
        probability => json!(probability),
    };
    let fields = json!({
        "type": "Fuse",
        "config": {
            "dropout_prob": dropout, "key": fusion.key, "query": fusion.query,
            "query_before_ln": fusion.query_before_ln && reads_sum,
            "regularization": fusion.regularization, "residual_before": false,
            "temperature": false, "value": fusion.value, "value_before_softmax": true,
            "value_initialized": fusion.value_initialized,
        },
    });
    let mut rules = Vec::new();
    for tap in seated(&fusion.parts, geometry) {
        let theirs = format!("{}.adapter_fusion_layer.{name}", tap.path);
        for (matrix, has) in [("query", fusion.query), ("key", fusion.key)] {
            let place = format!("{}/{matrix}", tap.path);
            if has {
                let (weight, bias) = (format!("{place}.weight"), format!("{place}.bias"));
                rules.push(Rule::transposed(
                    weight,
                    format!("{theirs}.{matrix}.weight"),
                ));
                rules.push(Rule::as_is(bias, format!("{theirs}.{matrix}.bias")));
            }
        }
        if fusion.value {
            let place = format!("{}/value", tap.path);
            rules.push(Rule::transposed(place, format!("{theirs}.value.weight")));
        }
    }
    Some(Foreign::new(fields, rules))
}
