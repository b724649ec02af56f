//! LoRA in AdapterHub's format: `architecture = "lora"`.

use peft_core::{CoreError, Fields, Foreign, Gate, Geometry, Role, Rule, Site, Targets};
use serde_json::json;

use super::Lora;
use crate::family::number;

/// The projections that AdapterHub's `attn_matrices` names.
const MATRICES: [(&str, Role); 3] = [("q", Role::Query), ("k", Role::Key), ("v", Role::Value)];

/// Reads a `LoRAConfig`.
pub(super) fn read(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Lora>, CoreError> {
    if fields.peek("architecture") != "lora" {
        return Ok(None);
    }
    if !has_projections_apart(geometry) {
        let expected = "another on a model with one matrix for query, key and value, of which \
                        AdapterHub updates each part by itself";
        return Err(fields.unsupported("architecture", &json!("lora"), expected));
    }
    fields.allow("composition_mode", &["add".into()])?;
    fields.allow("selfattn_lora", &[true.into()])?;
    // Starting values, and a type in which weights may be kept while training.
    fields.ignore(&["init_weights", "init_weights_seed", "dtype"]);
    let matrices: Vec<String> = fields
        .take("attn_matrices")?
        .unwrap_or_else(|| vec!["q".into(), "v".into()]);
    let role = |name: &String| MATRICES.iter().find(|(known, _)| known == name);
    let roles = matrices
        .iter()
        .map(|name| role(name).map(|(_, role)| role.name().into()));
    let Some(targets) = roles.collect::<Option<Vec<String>>>() else {
        return Err(fields.unsupported("attn_matrices", &json!(matrices), "of `q`, `k` and `v`"));
    };
    let gating = Gate::from_adapter_hub(fields, geometry)?;
    Ok(Some(Lora {
        rank: fields.require("r")?,
        alpha: fields.require("alpha")?,
        dropout: fields.take("dropout")?.unwrap_or(0.0),
        targets: Targets::Many(targets),
        gating,
        counts_padding: gating,
        ..Lora::default()
    }))
}

/// Whether the model has a matrix for each of query, key and value.
fn has_projections_apart(geometry: &Geometry) -> bool {
    let mut sites = geometry.sites.iter();
    !sites.any(|site| site.role == Role::FusedQkv)
}

/// Writes the `config` and the tensor names under an adapter name, where AdapterHub has all that is
/// set.
pub(super) fn write(lora: &Lora, geometry: &Geometry, name: &str) -> Option<Foreign> {
    let plain = Lora {
        rank: lora.rank,
        alpha: lora.alpha,
        dropout: lora.dropout,
        targets: lora.targets.clone(),
        gating: lora.gating,
        counts_padding: lora.counts_padding,
        ..Lora::default()
    };
    let gated = lora.gating && !Gate::is_known_to_adapter_hub(geometry);
    if *lora != plain || gated || lora.embeds(&geometry.table) {
        return None;
    }
    let selected: Vec<_> = lora.selected(geometry).collect();
    let matrices = MATRICES.into_iter();
    let matrices = matrices.filter(|(_, role)| selected.iter().any(|site| site.role == *role));
    let matrices: Vec<_> = matrices.map(|(name, _)| name).collect();
    // It has no choice of layers, and other linear layers go by other names in every model.
    let is_known = |site: &&Site| MATRICES.iter().any(|(_, role)| site.role == *role);
    if !selected.iter().all(is_known) || selected.len() != matrices.len() * geometry.layers {
        return None;
    }
    let mut rules = Vec::new();
    for site in selected {
        let (ours, theirs) = (&site.path, format!("{}.loras.{name}", site.path));
        let factor =
            |a: &str, b: &str| Rule::transposed(format!("{ours}/{a}"), format!("{theirs}.{b}"));
        rules.extend([factor("a", "lora_A"), factor("b", "lora_B")]);
        if lora.gating {
            let (ours, theirs) = (format!("{ours}/gate"), format!("{theirs}.gate"));
            rules.extend(Gate::rules(&ours, &theirs));
        }
    }
    let fields = json!({
        "alpha": number(lora.alpha), "architecture": "lora", "attn_matrices": matrices,
        "composition_mode": "add", "dropout": lora.dropout, "dtype": null,
        "init_weights": "lora", "init_weights_seed": null, "intermediate_lora": false,
        "leave_out": [], "output_lora": false, "r": lora.rank, "selfattn_lora": true,
        "use_dora": false, "use_gating": lora.gating, "vera_b": null, "vera_d": null,
    });
    Some(Foreign::new(fields, rules))
}
