//! Methods made of others in the harness: kinds of parts, and parts that were trained before.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::tensor::Device;
use models::Model;
use peft_core::compose::Trained;
use peft_core::state::{self, Tensors};
use peft_core::{Adapted, Assembler, BaseParam, CoreError, Host, Init, Method, adapt};
use serde_json::{Map, Value};

use crate::adapter::{Base, Card};
use crate::error::{BenchError, told};
use crate::hub::Kind;
use crate::registry::Registry;
use crate::{adapter, source};

/// Keys of a configuration that name other methods: a list of tables, and a list of folders.
const PARTS: &str = "parts";
const ADAPTERS: &str = "adapters";
/// The key of a part that names the folder of a trained adapter.
const ADAPTER: &str = "adapter";

impl Assembler for Registry {
    fn method(&self, kind: &str, config: &Value) -> Result<Arc<dyn Method>, CoreError> {
        self.parse(kind, config).map_err(|error| match error {
            BenchError::Method { reason, .. } => CoreError::Told(reason),
            other => CoreError::Told(other.to_string()),
        })
    }

    fn trained(&self, folder: &str) -> Result<(String, Value, String), CoreError> {
        let about = source::folder(Path::new(folder), Kind::Adapter)
            .and_then(|folder| adapter::describe(&folder))
            .and_then(|about| spelled_out(&about.1).map(|()| about));
        about.map_err(|error| CoreError::Told(told(&error)))
    }
}

/// Refuses the configuration of a trained adapter with parts that only name folders: what is saved
/// says what its parts are, and a folder could name itself.
fn spelled_out(config: &Value) -> Result<()> {
    ensure!(
        config.get(ADAPTERS).is_none(),
        "a trained adapter has `{ADAPTERS}`, which none that is saved has"
    );
    let parts = config.get(PARTS).and_then(Value::as_array);
    for (index, part) in parts.into_iter().flatten().enumerate() {
        ensure!(
            part.get("kind").is_some(),
            "`{PARTS}[{index}]` of a trained adapter has no `kind`"
        );
        spelled_out(part)?;
    }
    Ok(())
}

/// Gives every part that was trained before its values; `base` is the model they were trained on.
///
/// # Errors
/// If an adapter cannot be read or does not fit the base, or a part is frozen that has no values.
pub fn bring(method: &dyn Method, base: &Model, training: &Device) -> Result<()> {
    for (index, part) in method.parts().iter().enumerate() {
        let place = || format!("`parts[{index}]`");
        let Some(folder) = part.adapter() else {
            if part.is_frozen() {
                bail!(
                    "{} is frozen and has no `adapter`, the folder of its values",
                    place()
                );
            }
            bring(part.method(), base, training).with_context(place)?;
            continue;
        };
        let folder = source::folder(Path::new(folder), Kind::Adapter).with_context(place)?;
        let opened = adapter::open(&folder).with_context(place)?;
        let (_, _, digest) = adapter::describe(&folder).with_context(place)?;
        ensure!(
            part.digest() == Some(&*digest),
            "{}: `{}` is not the adapter that the study was read with; name it by `adapter` alone",
            place(),
            folder.display()
        );
        let mut init = Init::new(opened.seed(), training);
        let adapted = opened.fit_body(base.clone(), part.method(), &mut init);
        part.bring(Trained::of(base, &adapted.with_context(place)?));
    }
    Ok(())
}

/// A model with several adapters in it, as parts of a composition: its kind (`stack`), or its keys
/// as inline TOML.
///
/// # Errors
/// If there is no such composition, it has parameters of its own, or the parts do not go together.
pub fn composed(
    composition: &str,
    parts: &[(&Card, &Adapted<Model>)],
    base: &Base,
    registry: &Registry,
) -> Result<Adapted<Model>> {
    let (kind, mut config) = keys(composition)?;
    ensure!(!parts.is_empty(), "there is no adapter to compose");
    let values = parts.iter().map(|(card, _)| {
        ensure!(
            card.storage == *base.storage(),
            "an adapter over `{}` is bound to its packed base",
            card.storage.name()
        );
        ensure!(
            card.dropped_layers == 0,
            "an adapter that goes without its lowest {} layers is no part of another method; \
             `peft-bench convert --drop-layers 0` makes it one of all layers",
            card.dropped_layers
        );
        let mut part = card.config.as_object().cloned().unwrap_or_default();
        part.insert("kind".into(), card.kind.clone().into());
        part.insert("frozen".into(), true.into());
        Ok(Value::Object(part))
    });
    let values = values.collect::<Result<Vec<_>>>()?;
    config.insert(PARTS.into(), Value::Array(values));
    let method = registry.parse(&kind, &Value::Object(config))?;
    let mut presets = method.parts().iter().map(|part| part.method().storage());
    if let Some(preset) = presets.find_map(|preset| preset) {
        bail!(
            "an adapter over `{}` is bound to its packed base",
            preset.name()
        );
    }
    let base = with_their_head(base.model().valid(), parts)?;
    let geometry = base.geometry();
    method.check(&geometry)?;
    // What is counted is trained, and all parts are frozen.
    ensure!(
        method.parameters(&geometry) == 0,
        "`{kind}` has parameters of its own; train it with `parts = [{{ adapter = \"DIR\" }}, ...]`"
    );
    for (part, (_, adapted)) in method.parts().iter().zip(parts) {
        part.bring(Trained::of(&base, adapted));
    }
    let device = base.devices().pop().context("the model is on no device")?;
    Ok(adapt(base, &*method, None, &mut Init::new(0, &device))?)
}

/// The model with the task head that the adapters were trained with.
///
/// # Errors
/// If they have others, each its own.
fn with_their_head(base: Model, parts: &[(&Card, &Adapted<Model>)]) -> Result<Model> {
    let mut heads: Vec<_> = parts
        .iter()
        .map(|(_, part)| task_head(&part.host))
        .collect();
    heads.dedup();
    ensure!(
        heads.len() < 2,
        "the adapters have task heads of their own, which differ; train one head on all of them with \
         `parts = [{{ adapter = \"DIR\" }}, ...]`"
    );
    let head = heads.pop().unwrap_or_default();
    Ok(state::set(base, head, "the adapters' head")?)
}

fn task_head(model: &Model) -> Tensors {
    let params = model.geometry().params.into_iter();
    let head = params.filter(BaseParam::is_task_head).map(|p| p.id);
    state::tensors_of(model, &head.collect())
}

/// The kind and the other keys of a composition as a command line gives it.
fn keys(composition: &str) -> Result<(String, Map<String, Value>)> {
    if !composition.contains('=') {
        return Ok((composition.into(), Map::new()));
    }
    let keys: Value = toml::from_str(composition).context("the composition is not valid TOML")?;
    let Value::Object(mut keys) = keys else {
        bail!("the composition is no table");
    };
    match keys.remove("kind") {
        Some(Value::String(kind)) => Ok((kind, keys)),
        _ => bail!("the composition has no `kind`"),
    }
}

/// Visits the folders of trained adapters in a method's configuration.
///
/// # Errors
/// The first that `visit` gives.
pub fn each_folder<E>(
    config: &mut Map<String, Value>,
    visit: &mut dyn FnMut(&mut String) -> Result<(), E>,
) -> Result<(), E> {
    if let Some(Value::Array(folders)) = config.get_mut(ADAPTERS) {
        for folder in folders {
            if let Value::String(folder) = folder {
                visit(folder)?;
            }
        }
    }
    if let Some(Value::Array(parts)) = config.get_mut(PARTS) {
        for part in parts.iter_mut().filter_map(Value::as_object_mut) {
            if let Some(Value::String(folder)) = part.get_mut(ADAPTER) {
                visit(folder)?;
            }
            each_folder(part, visit)?;
        }
    }
    Ok(())
}

/// Visits the kinds of a configuration's parts and of theirs.
pub fn each_kind(config: &Value, visit: &mut dyn FnMut(&str)) {
    let parts = config.get(PARTS).and_then(Value::as_array);
    for part in parts.into_iter().flatten() {
        if let Some(kind) = part.get("kind").and_then(Value::as_str) {
            visit(kind);
        }
        each_kind(part, visit);
    }
}

/// Leaves out where trained adapters lie: the digests of their files, which stand beside, decide.
pub fn forget_folders(config: &mut Value) {
    if let Some(config) = config.as_object_mut() {
        let emptied: Result<(), std::convert::Infallible> = each_folder(config, &mut |folder| {
            folder.clear();
            Ok(())
        });
        emptied.unwrap_or_else(|never| match never {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_go_by_what_adapters_hold_and_not_by_where_they_lie() {
        let decisive = |folder: &str, digest: &str| {
            let part = json!({"kind": "lora", "adapter": folder, "digest": digest});
            let inner = json!({"kind": "stack", "parts": [part]});
            let mut config = json!({"parts": [inner, {"kind": "lora", "rank": 2}]});
            forget_folders(&mut config);
            config
        };
        assert_eq!(decisive("here", "1"), decisive("there", "1"));
        assert_ne!(decisive("here", "1"), decisive("here", "2"));
    }
}
