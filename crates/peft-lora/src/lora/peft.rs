//! LoRA in HF PEFT's format.

use peft_core::exchange::{path_ends_with, peft_targets, resolve_pattern, resolve_targets};
use peft_core::geometry::{Part, is_part_of};
use peft_core::{CoreError, Fields, Foreign, Geometry, Rule, Targets};
use serde_json::{Map, Value, json};

use super::{Bias, Lora};
use crate::family::number;

/// Reads `peft_type = "LORA"`, if it is the plain method.
pub(super) fn read(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Lora>, CoreError> {
    let of_a_variant = ["pissa", "olora", "eva"]
        .iter()
        .any(|start| starts_with(fields, start));
    if fields.peek("peft_type") != "LORA" || fields.peek("use_dora") == true || of_a_variant {
        return Ok(None);
    }
    read_fields(fields, geometry).map(Some)
}

/// Whether the update starts in the way of this name, or a variety of it.
pub(crate) fn starts_with(fields: &Fields, name: &str) -> bool {
    let start = fields.peek("init_lora_weights").as_str();
    fields.peek("peft_type") == "LORA" && start.is_some_and(|start| start.starts_with(name))
}

/// Reads the fields that LoRA shares with its variants.
pub(crate) fn read_fields(fields: &mut Fields, geometry: &Geometry) -> Result<Lora, CoreError> {
    // Other starts than these change the base weights, which an adapter's file does not hold.
    let plain_starts = [json!(true), json!(false), json!("gaussian")];
    fields.allow("init_lora_weights", &plain_starts)?;
    fields.ignore(&["fan_in_fan_out", "qalora_group_size"]);
    let ties_weights = fields.take("ensure_weight_tying")?.unwrap_or(false);
    let (targets, stray) = resolve_targets(fields, geometry)?;
    let (targets, head) = with_embedding(targets, stray, geometry);
    if let Some(name) = head {
        return Err(CoreError::NoSuchTarget {
            target: name,
            known: "the linear layers of the blocks and the token embedding".into(),
        });
    }
    let lora = Lora {
        rank: fields.require("r")?,
        alpha: fields.take("lora_alpha")?.unwrap_or(8.0),
        dropout: fields.take("lora_dropout")?.unwrap_or(0.0),
        rslora: fields.take("use_rslora")?.unwrap_or(false),
        rank_pattern: resolve_pattern(fields, "rank_pattern", geometry, &targets)?,
        alpha_pattern: resolve_pattern(fields, "alpha_pattern", geometry, &targets)?,
        bias: fields.take("bias")?.unwrap_or_default(),
        lora_bias: fields.take("lora_bias")?.unwrap_or(false),
        modules_to_save: fields.modules_to_save(geometry)?,
        targets,
        gating: false,
        counts_padding: false,
    };
    match ties_weights && adapts_tied_head(&lora, geometry) {
        false => Ok(lora),
        true => {
            let expected = "false where the embedding is adapted or saved and the head is tied to \
                            it: the head's part of such a file has no place here";
            Err(fields.unsupported("ensure_weight_tying", &json!(true), expected))
        }
    }
}

/// Whether PEFT, asked to keep weights tied, adapts the head with the embedding. Elsewhere the
/// setting does nothing, and PEFT says so.
fn adapts_tied_head(lora: &Lora, geometry: &Geometry) -> bool {
    let own_head = geometry.params.iter().any(|p| p.part == Part::Head);
    let table = &geometry.table;
    let mut saved = lora.modules_to_save.iter();
    let names_table = lora.embeds(table) || saved.any(|name| is_part_of(name, &table.path));
    !own_head && names_table
}

/// Adds the embedding if it is among the names that match no linear layer. Also gives the first of
/// those that is a module of the base and not supported; PEFT leaves out names that match nothing.
fn with_embedding(
    targets: Targets,
    stray: Vec<String>,
    geometry: &Geometry,
) -> (Targets, Option<String>) {
    let (tables, others): (Vec<_>, Vec<_>) = stray
        .into_iter()
        .partition(|name| path_ends_with(&geometry.table.path, name));
    let in_the_base = |name: &String| {
        let modules = geometry
            .params
            .iter()
            .filter_map(|p| p.name.rsplit_once('.'));
        modules
            .into_iter()
            .any(|(module, _)| path_ends_with(module, name))
    };
    let unsupported = others.into_iter().find(in_the_base);
    let targets = match (targets, tables.is_empty()) {
        (Targets::Many(mut names), false) => {
            names.extend(tables);
            Targets::Many(names)
        }
        (targets, _) => targets,
    };
    (targets, unsupported)
}

/// Writes the configuration fields and the tensor names.
pub(crate) fn write(lora: &Lora, geometry: &Geometry) -> Foreign {
    let selected: Vec<_> = lora.selected(geometry).collect();
    let mut targets = peft_targets(&selected, geometry);
    let mut rules = Vec::new();
    for site in &selected {
        let (ours, theirs) = (&site.path, format!("base_model.model.{}", site.path));
        rules.push(Rule::transposed(
            format!("{ours}/a"),
            format!("{theirs}.lora_A.weight"),
        ));
        rules.push(Rule::transposed(
            format!("{ours}/b"),
            format!("{theirs}.lora_B.weight"),
        ));
        if lora.lora_bias {
            rules.push(Rule::as_is(
                format!("{ours}/b_bias"),
                format!("{theirs}.lora_B.bias"),
            ));
        }
    }
    let table = &geometry.table.path;
    if lora.embeds(&geometry.table) {
        targets.push(table.clone());
        for (ours, theirs) in [("a", "A"), ("b", "B")] {
            let key = format!("base_model.model.{table}.lora_embedding_{theirs}");
            rules.push(Rule::transposed(format!("{table}/{ours}"), key));
        }
    }
    let by_path = |pattern: Map<String, Value>| Value::Object(pattern);
    let fields = json!({
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": number(lora.alpha),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "lora_bias": lora.lora_bias,
        "bias": match lora.bias { Bias::None => "none", Bias::All => "all", Bias::LoraOnly => "lora_only" },
        "target_modules": targets,
        "modules_to_save": lora.modules_to_save,
        "rank_pattern": by_path(lora.rank_pattern.iter().map(|(k, v)| (k.clone(), json!(v))).collect()),
        "alpha_pattern": by_path(lora.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect()),
        "fan_in_fan_out": geometry.keeps_weights_in_out(),
        "init_lora_weights": true,
        "use_dora": false,
    });
    Foreign::new(fields, rules)
}
