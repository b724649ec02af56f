//! HF PEFT's folders: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::TensorData;
use models::Model;
use peft_core::exchange::{collect, export, import, restore};
use peft_core::state::{self, Tensors};
use peft_core::{BaseParam, Fields, Geometry, Init, Method, Rule, geometry_for};
use serde_json::{Map, Value, json};

use super::{Base, Fitted, Opened, files, fresh};
use crate::registry::Registry;

const TENSORS: &str = "adapter_model.safetensors";
const PICKLED: &str = "adapter_model.bin";
/// The release whose fields are written.
const VERSION: &str = "0.21.2";
/// Where a module's path starts in a key.
const MODULES: &str = "base_model.model.";

/// Fields that say nothing of what is computed.
const HARMLESS: &[&str] = &[
    "peft_type",
    "task_type",
    "peft_version",
    "base_model_name_or_path",
    "inference_mode",
    "auto_mapping",
    "revision",
    "megatron_core",
    "megatron_config",
    "runtime_config",
    "ephemeral_gpu_offload",
];

pub(super) fn tensors(folder: &Path) -> Result<Tensors> {
    let found = files::tensors(folder, TENSORS, PICKLED)?;
    let found = found.with_context(|| {
        let folder = folder.display();
        format!("`{folder}` has neither `{TENSORS}` nor `{PICKLED}`")
    })?;
    Ok(normalised(found))
}

/// Keys without the adapter's name, and each value under one key.
///
/// Older files name the adapter (`lora_A.default.weight`). A module saved whole may stand there
/// three times: as it is in use, under `modules_to_save`, and as the base had it. What layers share
/// may stand there once, and again in every layer.
fn normalised(tensors: Tensors) -> Tensors {
    let mut plain = Tensors::new();
    let mut copies = Tensors::new();
    for (key, data) in tensors {
        let parts: Vec<&str> = key.split('.').collect();
        if parts.contains(&"original_module") {
            continue;
        }
        let kept: Vec<&str> = parts
            .iter()
            .filter(|part| !["default", "modules_to_save"].contains(part))
            .copied()
            .collect();
        let is_copy = parts.contains(&"modules_to_save");
        let target = if is_copy { &mut copies } else { &mut plain };
        target.insert(kept.join("."), data);
    }
    for (key, data) in copies {
        plain.entry(key).or_insert(data);
    }
    let shared: Vec<String> = plain
        .keys()
        .filter_map(|key| key.strip_prefix("base_model."))
        .filter(|rest| !rest.contains('.'))
        .map(|name| format!(".{name}"))
        .collect();
    let repeats = |key: &String| shared.iter().any(|name| key.ends_with(name));
    plain.retain(|key, _| !(key.starts_with(MODULES) && repeats(key)));
    plain
}

pub(super) fn fit(
    opened: Opened,
    base: &Base,
    registry: &Registry,
    init: &mut Init,
) -> Result<Fitted> {
    let file = opened.folder.join(files::CONFIG).display().to_string();
    let fields = Fields::new(file, opened.config);
    let geometry = peft_core::Host::geometry(base.model());
    let method = registry.from_peft(fields, &geometry, HARMLESS)?;
    let file = opened.folder.join(TENSORS).display().to_string();
    let tensors = without_table(opened.tensors, base.model(), &geometry, &file)?;
    let mut fitted = fresh(method, &tensors, base, init)?;
    let rules = rules(&*fitted.method, &fitted.geometry())
        .context("the method read from this format has no form in it")?;
    let ours = import(tensors, &rules, &file)?;
    fitted.model = restore(fitted.model, ours, &file)?;
    Ok(fitted)
}

/// The tensors without the copy of the whole embedding table that PEFT saves beside an adapted
/// embedding. It must be the base's own, for the adapter was trained on it.
fn without_table(
    mut tensors: Tensors,
    model: &Model,
    geometry: &Geometry,
    file: &str,
) -> Result<Tensors> {
    let table = &geometry.table.path;
    let Some(copy) = tensors.remove(&format!("{MODULES}{table}.base_layer.weight")) else {
        return Ok(tensors);
    };
    let base = model.export().remove(&format!("{table}.weight"));
    let base = base.with_context(|| format!("the base has no `{table}.weight`"))?;
    if same_values(&copy, &base) {
        return Ok(tensors);
    }
    bail!(
        "`{file}` holds another table for `{table}` than the base has: it was trained on another \
         base, or its vocabulary was changed"
    )
}

fn same_values(a: &TensorData, b: &TensorData) -> bool {
    let close = |(a, b): (f32, f32)| (a - b).abs() <= 1e-2 * b.abs().max(1e-3);
    a.shape() == b.shape() && a.iter::<f32>().zip(b.iter::<f32>()).all(close)
}

/// Every tensor of the adapter: the method's own and the base's that are trained with it.
fn rules(method: &dyn Method, geometry: &Geometry) -> Option<Vec<Rule>> {
    let mut rules = method.peft(geometry)?.rules;
    let wraps_modules = rules.iter().any(|rule| rule.key.starts_with(MODULES));
    // Methods that wrap no module (prompts) have one `model` less before the base's own names.
    let before = match wraps_modules || rules.is_empty() {
        true => MODULES,
        false => "base_model.",
    };
    let base: Vec<Rule> = geometry
        .params
        .iter()
        .filter(|p| p.is_task_head() || method.trains(p))
        .filter(|p| rules.iter().all(|rule| rule.place != p.name))
        .map(|p| base_rule(p, before, &rules))
        .collect();
    rules.extend(base);
    Some(rules)
}

fn base_rule(param: &BaseParam, before: &str, own: &[Rule]) -> Rule {
    let rule = Rule::as_is(param.name.clone(), base_key(&param.name, before, own));
    // A head that is not in the file is the base's.
    match param.is_task_head() {
        true => rule.optional(),
        false => rule,
    }
}

/// The key of a base parameter: inside a wrapped module it is one of the `base_layer`.
fn base_key(name: &str, before: &str, rules: &[Rule]) -> String {
    let Some((module, leaf)) = name.rsplit_once('.') else {
        return format!("{before}{name}");
    };
    let wrapped = format!("{MODULES}{module}.");
    match rules.iter().any(|rule| rule.key.starts_with(&wrapped)) {
        true => format!("{before}{module}.base_layer.{leaf}"),
        false => format!("{before}{name}"),
    }
}

pub(super) fn write(fitted: &Fitted, base: &Value, folder: &Path) -> Result<()> {
    let (kind, method) = (&fitted.card.kind, &*fitted.method);
    let geometry = geometry_for(&fitted.model.host, method);
    let no_form = || {
        format!("HF PEFT has no form of `{kind}` with this configuration; see `peft-bench methods`")
    };
    let own = method.peft(&geometry).with_context(no_form)?;
    let rules = rules(method, &geometry).with_context(no_form)?;
    // PEFT keeps what training made, not the networks that made it.
    let settled = fitted.model.clone().settled();
    let theirs = export(&collect(&settled, &rules)?, &rules)?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let config = config(own.fields, fitted, &geometry, base);
    state::save(&theirs, metadata, &folder.join(TENSORS))?;
    files::write_json(&folder.join(files::CONFIG), &config)
}

fn config(
    own: Map<String, Value>,
    fitted: &Fitted,
    geometry: &Geometry,
    base: &Value,
) -> Map<String, Value> {
    let causal = fitted.model.host.is_causal();
    let name = &base["_name_or_path"];
    let common = json!({
        "auto_mapping": null,
        "base_model_name_or_path": if name.is_string() { name } else { &Value::Null },
        "inference_mode": true,
        "peft_version": VERSION,
        "revision": null,
        "task_type": if causal { "CAUSAL_LM" } else { "SEQ_CLS" },
    });
    let Value::Object(mut config) = common else {
        unreachable!("a JSON table")
    };
    config.extend(own);
    let heads = geometry.params.iter().filter(|p| p.is_task_head());
    let heads = heads.filter_map(|p| p.name.split('.').next());
    let given = config.get("modules_to_save").and_then(Value::as_array);
    let mut saved: Vec<Value> = given.cloned().unwrap_or_default();
    for head in heads {
        if !saved.contains(&head.into()) {
            saved.push(head.into());
        }
    }
    let saved = match saved.is_empty() {
        true => Value::Null,
        false => Value::Array(saved),
    };
    config.insert("modules_to_save".into(), saved);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lose_the_adapters_name_and_copies_of_saved_and_shared_modules() {
        let value = |v: f32| TensorData::new(vec![v], [1]);
        let tensors = Tensors::from([
            (
                "base_model.model.q.lora_A.default.weight".into(),
                value(1.0),
            ),
            ("base_model.model.classifier.weight".into(), value(2.0)),
            (
                "base_model.model.classifier.modules_to_save.weight".into(),
                value(3.0),
            ),
            (
                "base_model.model.classifier.original_module.weight".into(),
                value(4.0),
            ),
            (
                "base_model.model.lm_head.modules_to_save.default.weight".into(),
                value(5.0),
            ),
            ("base_model.vera_A".into(), value(6.0)),
            ("base_model.model.q.vera_A".into(), value(6.0)),
        ]);
        let expected = Tensors::from([
            ("base_model.model.q.lora_A.weight".into(), value(1.0)),
            ("base_model.model.classifier.weight".into(), value(2.0)),
            ("base_model.model.lm_head.weight".into(), value(5.0)),
            ("base_model.vera_A".into(), value(6.0)),
        ]);
        assert_eq!(normalised(tensors), expected);
    }
}
