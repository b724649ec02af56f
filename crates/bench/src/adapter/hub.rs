//! AdapterHub's folders: `adapter_config.json`, `adapter.safetensors` (or `pytorch_adapter.bin`),
//! and the head in `head_config.json` and `model_head.safetensors` (or `.bin`).

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use models::Model;
use peft_core::exchange::{collect, export, import, restore};
use peft_core::state::{self, Tensors};
use peft_core::{Fields, Geometry, Host, Init, Rule};
use serde_json::{Map, Value, json};

use super::{Base, Fitted, Opened, early, files, fresh};
use crate::heads::Heads;
use crate::registry::Registry;

pub(super) const TENSORS: &str = "adapter.safetensors";
pub(super) const PICKLED: &str = "pytorch_adapter.bin";
const HEAD_CONFIG: &str = "head_config.json";
const HEAD: &str = "model_head.safetensors";
const PICKLED_HEAD: &str = "pytorch_model_head.bin";
/// The release whose fields are written.
pub(super) const VERSION: &str = "adapters.1.3.0";

/// Fields of a `config` that say nothing of what is computed.
pub(super) const HARMLESS: &[&str] = &["architecture"];

/// The adapter's tensors and, where there are any, the head's.
pub(super) fn tensors(folder: &Path) -> Result<Tensors> {
    let mut tensors = own_tensors(folder)?;
    tensors.extend(head_tensors(folder)?);
    Ok(tensors)
}

/// The adapter's tensors alone.
pub(super) fn own_tensors(folder: &Path) -> Result<Tensors> {
    let own = files::tensors(folder, TENSORS, PICKLED)?;
    let tensors = own.with_context(|| {
        let folder = folder.display();
        format!("`{folder}` has neither `{TENSORS}` nor `{PICKLED}`")
    })?;
    let mut tensors = early::renamed(tensors);
    // A prefix is there once for the model and again below every layer that reads it.
    tensors.retain(|key, _| !key.contains(".prefix_tuning.pool."));
    Ok(tensors)
}

/// The head's tensors; none where the folder has no head.
pub(super) fn head_tensors(folder: &Path) -> Result<Tensors> {
    Ok(files::tensors(folder, HEAD, PICKLED_HEAD)?.unwrap_or_default())
}

pub(super) fn fit(
    mut opened: Opened,
    base: &Base,
    registry: &Registry,
    init: &mut Init,
) -> Result<Fitted> {
    let file = opened.folder.join(files::CONFIG).display().to_string();
    let name = opened.config.get("name").and_then(Value::as_str);
    let name = name
        .with_context(|| format!("`{file}` has no `name`, which the keys of its tensors contain"))?
        .to_string();
    let geometry = base.model().geometry();
    let width = opened.config.get("hidden_size").and_then(Value::as_u64);
    ensure!(
        width.is_none_or(|width| width == geometry.width as u64),
        "`hidden_size` of `{file}` is {}, the base has {}",
        width.unwrap_or(0),
        geometry.width
    );
    let Some(Value::Object(mut config)) = opened.config.remove("config") else {
        bail!("`config` of `{file}` is no JSON table");
    };
    early::without_empty_promise(&opened.config, &mut config, &opened.tensors);
    let method = registry.from_adapter_hub(Fields::new(file, config), &geometry, HARMLESS)?;
    let labels = labels(&opened.folder)?;
    let file = opened.folder.join(TENSORS).display().to_string();
    let tensors = without_base_head(opened.tensors, base.model())?;
    let tensors = with_body(tensors, &geometry);
    let mut fitted = fresh(method, &tensors, base, init)?;
    fitted.card.heads = Heads::new(None, labels);
    let rules = rules(&fitted, &fitted.geometry(), &name)?;
    let ours = import(tensors, &rules, &file)?;
    fitted.model = restore(fitted.model, ours, &file)?;
    Ok(fitted)
}

/// The tensors without a language model's head, which AdapterHub saves along though it is the
/// base's.
pub(super) fn without_base_head(mut tensors: Tensors, model: &Model) -> Result<Tensors> {
    let is_head = |key: &String| key.starts_with("lm_head.");
    let Some(key) = tensors.keys().find(|key| is_head(key)).cloned() else {
        return Ok(tensors);
    };
    let base = model.export();
    // Where the head is tied, the embedding stands for it.
    let table = format!("{}.weight", model.geometry().table.path);
    let own = base.get(&key).or_else(|| base.get(&table));
    ensure!(
        own == tensors.get(&key),
        "`{key}` differs from the base's: a language model's head that was trained along is not \
         supported"
    );
    tensors.retain(|key, _| !is_head(key));
    Ok(tensors)
}

/// Keys with the body's prefix, which adapters saved from a bare body lack.
pub(super) fn with_body(tensors: Tensors, geometry: &Geometry) -> Tensors {
    let first = geometry.taps.first();
    let Some((body, _)) = first.and_then(|tap| tap.path.split_once('.')) else {
        return tensors;
    };
    let has_body = |key: &String| key.starts_with(&format!("{body}."));
    if tensors.keys().any(has_body) {
        return tensors;
    }
    let named = |(key, data)| (format!("{body}.{key}"), data);
    tensors.into_iter().map(named).collect()
}

/// The class names of the head, in the order of their ids.
pub(super) fn labels(folder: &Path) -> Result<Vec<String>> {
    let file = folder.join(HEAD_CONFIG);
    if !file.exists() {
        return Ok(Vec::new());
    }
    let config = files::json(&file)?;
    let Some(ids) = config.get("label2id").and_then(Value::as_object) else {
        return Ok(Vec::new());
    };
    let id = |(label, id): (&String, &Value)| Some((id.as_u64()?, label.clone()));
    let mut labels: Vec<_> = ids.iter().filter_map(id).collect();
    labels.sort();
    Ok(labels.into_iter().map(|(_, label)| label).collect())
}

/// Every tensor of the adapter and of the head.
fn rules(fitted: &Fitted, geometry: &Geometry, name: &str) -> Result<Vec<Rule>> {
    let (kind, method) = (&fitted.card.kind, &fitted.method);
    let own = method.adapter_hub(geometry, name);
    let own = own.with_context(|| {
        format!(
            "AdapterHub has no form of `{kind}` with this configuration; see `peft-bench methods`"
        )
    })?;
    let mut rules = own.rules;
    rules.extend(head_rules(geometry));
    Ok(rules)
}

/// Every tensor of the head.
pub(super) fn head_rules(geometry: &Geometry) -> impl Iterator<Item = Rule> {
    let heads = geometry.params.iter().filter(|p| p.is_task_head());
    heads.map(|p| Rule::as_is(p.name.clone(), p.name.clone()).optional())
}

pub(super) fn write(fitted: &Fitted, base: &Value, name: &str, folder: &Path) -> Result<()> {
    check_name(name)?;
    let geometry = fitted.geometry();
    let rules = rules(fitted, &geometry, name)?;
    let method = &fitted.method;
    let fields = method.adapter_hub(&geometry, name).map(|own| own.fields);
    let theirs = export(&collect(&fitted.model, &rules)?, &rules)?;
    let is_head = |key: &String| head_rules(&geometry).any(|rule| rule.key == *key);
    let (head, adapter): (Tensors, Tensors) = theirs.into_iter().partition(|(key, _)| is_head(key));

    let about = about(base, &geometry, name, fields.unwrap_or_default());
    state::save(&adapter, Default::default(), &folder.join(TENSORS))?;
    files::write_json(&folder.join(files::CONFIG), &about)?;
    write_head(&head, fitted, base, folder)
}

/// Refuses names that AdapterHub's keys could not hold.
pub(super) fn check_name(name: &str) -> Result<()> {
    ensure!(
        !name.is_empty() && !name.contains(['.', ',', '/']),
        "`{name}` cannot name an adapter: expected letters without `.`, `,` and `/`"
    );
    Ok(())
}

/// Writes the head, if there is one.
pub(super) fn write_head(
    head: &Tensors,
    fitted: &Fitted,
    base: &Value,
    folder: &Path,
) -> Result<()> {
    let geometry = fitted.geometry();
    if head.is_empty() {
        return Ok(());
    }
    let classes = geometry.params.iter().rfind(|p| p.is_task_head());
    let classes = classes.and_then(|p| p.shape.last().copied()).unwrap_or(0);
    let about = head_about(base, &geometry, &fitted.card.heads.names(), classes);
    state::save(head, Default::default(), &folder.join(HEAD))?;
    files::write_json(&folder.join(HEAD_CONFIG), &about)
}

pub(super) fn about(
    base: &Value,
    geometry: &Geometry,
    name: &str,
    config: Map<String, Value>,
) -> Map<String, Value> {
    let mut about = common(base, geometry);
    about.insert("config".into(), Value::Object(config));
    about.insert("name".into(), name.into());
    about
}

fn head_about(
    base: &Value,
    geometry: &Geometry,
    labels: &[String],
    classes: usize,
) -> Map<String, Value> {
    let numbered = (0..classes).map(|id| match labels.get(id) {
        Some(label) => (label.clone(), json!(id)),
        None => (format!("LABEL_{id}"), json!(id)),
    });
    let mut about = common(base, geometry);
    about.insert("config".into(), Value::Null);
    about.insert("name".into(), Value::Null);
    about.insert("label2id".into(), Value::Object(numbered.collect()));
    about.insert("num_labels".into(), json!(classes));
    about
}

pub(super) fn common(base: &Value, geometry: &Geometry) -> Map<String, Value> {
    let about = json!({
        "hidden_size": geometry.width,
        "model_class": base["architectures"][0],
        "model_name": base["_name_or_path"],
        "model_type": base["model_type"],
        "version": VERSION,
    });
    match about {
        Value::Object(about) => about,
        _ => unreachable!("a JSON table"),
    }
}
