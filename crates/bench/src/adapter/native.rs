//! Our own format: the trained tensors, and what is needed to put them back.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use models::Model;
use peft_core::state::{self, Tensors};
use peft_core::{Adapted, Host, Init, adapt};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Card, Fitted, Opened};
use crate::registry::Registry;
use crate::trial::StorageSpec;

/// File of the trained tensors.
const TENSORS: &str = "adapter.safetensors";
/// File of the description.
pub(super) const DESCRIPTION: &str = "adapter.json";
/// Where the parameters that layers share stand in the module tree.
const SHARED: &str = "shared.";

/// What an adapter folder says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Description {
    /// Version of this format.
    format: u32,
    /// The method's kind.
    kind: String,
    /// Its configuration.
    config: Value,
    /// How the frozen weights were stored.
    storage: StorageSpec,
    /// Seed of the start; methods with frozen random parts need it again. Without one, the tensors
    /// hold those parts.
    seed: Option<u64>,
    /// Names of the classes, for a classifier.
    labels: Vec<String>,
    /// Parameters of the base it was trained on.
    base_parameters: usize,
}

pub(super) fn tensors(folder: &Path) -> Result<Tensors> {
    Ok(state::load(&folder.join(TENSORS))?)
}

pub(super) fn write(model: &Adapted<Model>, card: &Card, folder: &Path) -> Result<()> {
    let description = Description {
        format: 1,
        kind: card.kind.clone(),
        config: card.config.clone(),
        storage: card.storage.clone(),
        seed: card.seed,
        labels: card.labels.clone(),
        base_parameters: model.host.geometry().base_parameters(),
    };
    let mut tensors = state::trained_tensors(model);
    if card.seed.is_none() {
        let named = |(name, data)| (format!("{SHARED}{name}"), data);
        tensors.extend(state::float_tensors(&model.shared).into_iter().map(named));
    }
    state::save(&tensors, BTreeMap::new(), &folder.join(TENSORS))?;
    let text = serde_json::to_string_pretty(&description)?;
    state::write_atomically(&folder.join(DESCRIPTION), text.as_bytes())?;
    Ok(())
}

pub(super) fn fit(
    opened: Opened,
    model: Model,
    registry: &Registry,
    init: &mut Init,
) -> Result<Fitted> {
    let file = opened.folder.join(DESCRIPTION);
    let file = file.display();
    let format = opened.config.get("format").and_then(Value::as_u64);
    ensure!(
        format == Some(1),
        "`{file}` has format {}, this version reads format 1",
        opened.config.get("format").unwrap_or(&Value::Null)
    );
    let description: Description = serde_json::from_value(Value::Object(opened.config))
        .map_err(|e| anyhow::anyhow!("`{file}` is damaged: {e}"))?;
    let method = registry.parse(&description.kind, &description.config)?;
    let mut adapted = adapt(model, &*method, description.storage.build(), init)?;
    let parameters = adapted.host.geometry().base_parameters();
    ensure!(
        parameters == description.base_parameters,
        "it was trained on a base of {} parameters, this one has {parameters}",
        description.base_parameters
    );
    let source = opened.folder.join(TENSORS).display().to_string();
    let (shared, tensors) = match description.seed {
        Some(_) => (Tensors::new(), opened.tensors),
        None => opened
            .tensors
            .into_iter()
            .partition(|(name, _)| name.starts_with(SHARED)),
    };
    let (kept, trained) = frozen(&adapted, shared);
    adapted = state::set(adapted, kept, &source)?;
    let tensors = tensors.into_iter().chain(trained).collect();
    let model = state::restore(adapted, tensors, &source)?;
    let card = Card {
        kind: description.kind,
        config: description.config,
        storage: description.storage,
        seed: description.seed,
        labels: description.labels,
    };
    Ok(Fitted {
        model,
        method,
        card,
    })
}

/// Of the tensors that layers share, those that are frozen, and those that are trained.
fn frozen(adapted: &Adapted<Model>, shared: Tensors) -> (Tensors, Tensors) {
    let rows = state::parameters(adapted);
    let is_trained = |name: &String| rows.iter().any(|row| row.trainable && row.name == *name);
    shared.into_iter().partition(|(name, _)| !is_trained(name))
}
