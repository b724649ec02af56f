//! Prefix tuning in AdapterHub's format: `architecture = "prefix_tuning"`.

use peft_core::{CoreError, Fields, Foreign, Form, Gate, Geometry, Role, Rule};
use serde_json::json;

use super::Prefix;
use crate::hub;
use crate::prefix_encoder::PrefixEncoder;

pub(super) fn read(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Prefix>, CoreError> {
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
    let gating = Gate::from_adapter_hub(fields, geometry)?;
    if gating {
        fields.allow("shared_gating", &[true.into()])?;
    }
    // Of models with two stacks of layers, of gates, and of starting values.
    fields.ignore(&["cross_prefix", "shared_gating", "init_weights_seed"]);
    Ok(Some(Prefix {
        num_virtual_tokens: fields.require("prefix_length")?,
        prefix_projection: !flat,
        encoder_hidden_size: hidden.filter(|_| !flat),
        takes_positions: false,
        gating,
        counts_padding: gating,
        ..Prefix::default()
    }))
}

pub(super) fn write(prefix: &Prefix, geometry: &Geometry, name: &str) -> Option<Foreign> {
    // AdapterHub has no field for it: its prefixes never take positions.
    if prefix.takes_positions || (prefix.gating && !Gate::is_known_to_adapter_hub(geometry)) {
        return None;
    }
    let flat = !prefix.prefix_projection;
    let fields = json!({
        "architecture": "prefix_tuning", "bottleneck_size": prefix.hidden(geometry),
        "cross_prefix": true, "dropout": 0.0, "encoder_prefix": true, "flat": flat,
        "init_weights_seed": null, "leave_out": [], "non_linearity": "tanh",
        "prefix_length": prefix.num_virtual_tokens, "shared_gating": true,
        "use_gating": prefix.gating,
    });
    let body = hub::body(geometry);
    let path = format!("{body}prefix_tuning.prefix_tunings.{name}.self_prefix");
    let mut rules = match flat {
        true => prefix.column_rules(
            geometry,
            &format!("{path}.control_trans"),
            Form::FlatColumns,
        ),
        false => PrefixEncoder::rules(&path),
    };
    if prefix.gating {
        rules.extend(gate_rules(geometry, name)?);
    }
    Some(Foreign::new(fields, rules))
}

/// The gates of all layers, which AdapterHub keeps with their attention modules; none where the
/// modules of a layer's projections have no place in common.
fn gate_rules(geometry: &Geometry, name: &str) -> Option<Vec<Rule>> {
    let of_layer = |layer: usize| {
        let mut sites = geometry.sites.iter();
        let query = sites.find(|site| site.layer == layer && site.role == Role::Query)?;
        let (attention, _) = query.path.rsplit_once('.')?;
        let path = format!("{attention}.prefix_tuning.prefix_gates.{name}");
        Some(Gate::rules(&format!("layer.{layer}.attention/gate"), &path))
    };
    let rules: Option<Vec<_>> = (0..geometry.layers).map(of_layer).collect();
    rules.map(|rules| rules.concat())
}
