//! EVA in HF PEFT's format: LoRA with ranks by layer, and how they were found.

use peft_core::exchange::path_ends_with;
use peft_core::{CoreError, Fields, Foreign, Geometry, Site, Targets};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Eva;
use crate::lora::{Lora, peft};

/// `eva_config`.
#[derive(Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct EvaConfig {
    rho: f64,
    tau: f64,
    use_label_mask: bool,
    label_mask_value: i64,
    whiten: bool,
    adjust_scaling_factors: bool,
}

impl Default for EvaConfig {
    fn default() -> Self {
        Self::of(&Eva::default())
    }
}

impl EvaConfig {
    fn of(eva: &Eva) -> Self {
        Self {
            rho: eva.rho,
            // What says when to stop, and which labels stand for none, are theirs.
            tau: 0.99,
            use_label_mask: eva.use_label_mask,
            label_mask_value: -100,
            whiten: eva.whiten,
            adjust_scaling_factors: eva.adjust_scaling_factors,
        }
    }
}

pub(super) fn read(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Eva>, CoreError> {
    if !peft::starts_with(fields, "eva") {
        return Ok(None);
    }
    if fields.peek("use_dora") == true {
        let found = fields.peek("use_dora").clone();
        return Err(fields.unsupported("use_dora", &found, "false with this start"));
    }
    let found = fields.peek("init_lora_weights").clone();
    fields.ignore(&["init_lora_weights"]);
    let config: EvaConfig = fields.take("eva_config")?.unwrap_or_default();
    let lora = peft::read_fields(fields, geometry)?;
    let embeds = |name: &String| path_ends_with(&geometry.table.path, name);
    let eva = Eva {
        rho: config.rho,
        use_label_mask: config.use_label_mask,
        whiten: config.whiten,
        adjust_scaling_factors: config.adjust_scaling_factors,
        ..Eva::from(lora.clone())
    };
    if eva.lora() != lora || lora.targets.names().iter().any(embeds) {
        let expected = "plain with another bias, module or the embedding: this start is for linear \
                        layers";
        return Err(fields.unsupported("init_lora_weights", &found, expected));
    }
    Ok(Some(eva))
}

pub(super) fn write(eva: &Eva, geometry: &Geometry) -> Foreign {
    let updated = |site: &&Site| eva.updates(site);
    let sites = geometry.sites.iter().filter(updated);
    let lora = Lora {
        targets: Targets::Many(sites.map(|site| site.path.clone()).collect()),
        ..eva.lora()
    };
    let mut foreign = peft::write(&lora, geometry);
    let mut put = |key: &str, value| foreign.fields.insert(key.into(), value);
    put("init_lora_weights", json!("eva"));
    put("eva_config", json!(EvaConfig::of(eva)));
    foreign
}
