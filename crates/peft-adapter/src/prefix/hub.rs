//! Prefix tuning in AdapterHub's format: `architecture = "prefix_tuning"`.

use peft_core::{CoreError, Fields, Foreign, Form, Geometry};
use serde_json::json;

use super::Prefix;
use crate::hub;
use crate::prefix_encoder::PrefixEncoder;

pub(super) fn read(fields: &mut Fields) -> Result<Option<Prefix>, CoreError> {
    if fields.peek("architecture") != "prefix_tuning" {
        return Ok(None);
    }
    let flat = fields.take("flat")?.unwrap_or(false);
    let hidden = fields.take("bottleneck_size")?;
    if flat {
        fields.ignore(&["non_linearity"]);
    }
    fields.allow("non_linearity", &["tanh".into()])?;
    fields.allow("encoder_prefix", &[true.into()])?;
    // Of models with two stacks of layers, of gates, and of starting values.
    fields.ignore(&["cross_prefix", "shared_gating", "init_weights_seed"]);
    Ok(Some(Prefix {
        num_virtual_tokens: fields.require("prefix_length")?,
        prefix_projection: !flat,
        encoder_hidden_size: hidden.filter(|_| !flat),
        takes_positions: false,
        ..Prefix::default()
    }))
}

pub(super) fn write(prefix: &Prefix, geometry: &Geometry, name: &str) -> Option<Foreign> {
    // AdapterHub has no field for it: its prefixes never take positions.
    if prefix.takes_positions {
        return None;
    }
    let flat = !prefix.prefix_projection;
    let fields = json!({
        "architecture": "prefix_tuning", "bottleneck_size": prefix.hidden(geometry),
        "cross_prefix": true, "dropout": 0.0, "encoder_prefix": true, "flat": flat,
        "init_weights_seed": null, "leave_out": [], "non_linearity": "tanh",
        "prefix_length": prefix.num_virtual_tokens, "shared_gating": true, "use_gating": false,
    });
    let body = hub::body(geometry);
    let path = format!("{body}prefix_tuning.prefix_tunings.{name}.self_prefix");
    let rules = match flat {
        true => prefix.column_rules(
            geometry,
            &format!("{path}.control_trans"),
            Form::FlatColumns,
        ),
        false => PrefixEncoder::rules(&path),
    };
    Some(Foreign::new(fields, rules))
}
