//! Trained adapters on disk: the trained tensors, and what is needed to put them back.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use models::Model;
use peft_core::{Adapted, Host, Init, adapt, state};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::registry::Registry;
use crate::trial::{StorageSpec, Trial};

/// File of the trained tensors.
const TENSORS: &str = "adapter.safetensors";
/// File of the description.
const DESCRIPTION: &str = "adapter.json";

/// What an adapter folder says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// Version of this format.
    pub format: u32,
    /// The method's kind.
    pub kind: String,
    /// Its configuration.
    pub config: Value,
    /// How the frozen weights were stored.
    pub storage: StorageSpec,
    /// Seed of the start; methods with frozen random parts need it again.
    pub seed: u64,
    /// Names of the classes, for a classifier.
    pub labels: Vec<String>,
    /// Parameters of the base it was trained on.
    pub base_parameters: usize,
}

/// Writes the trained tensors of a model and their description into a folder.
///
/// # Errors
/// If the folder cannot be written.
pub fn save(model: &Adapted<Model>, trial: &Trial, labels: &[String], folder: &Path) -> Result<()> {
    let description = Description {
        format: 1,
        kind: trial.kind.clone(),
        config: trial.config.clone(),
        storage: trial.storage.clone(),
        seed: trial.seed,
        labels: labels.to_vec(),
        base_parameters: model.host.geometry().base_parameters(),
    };
    let tensors = state::trained_tensors(model);
    state::save(&tensors, BTreeMap::new(), &folder.join(TENSORS))?;
    let text = serde_json::to_string_pretty(&description)?;
    state::write_atomically(&folder.join(DESCRIPTION), text.as_bytes())?;
    Ok(())
}

/// Reads an adapter's description.
///
/// # Errors
/// If the folder holds none, or of a newer format.
pub fn describe(folder: &Path) -> Result<Description> {
    let file = folder.join(DESCRIPTION);
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("`{}` is no adapter folder", folder.display()))?;
    let description: Description =
        serde_json::from_str(&text).with_context(|| format!("`{}` is damaged", file.display()))?;
    anyhow::ensure!(
        description.format == 1,
        "`{}` has format {}, this version reads format 1",
        file.display(),
        description.format
    );
    Ok(description)
}

/// Puts a saved adapter into its base model; `init` must be on the device of the model.
///
/// # Errors
/// If the adapter was made for another base, or its tensors do not fit.
pub fn load(
    model: Model,
    folder: &Path,
    registry: &Registry,
    init: &mut Init,
) -> Result<Adapted<Model>> {
    let description = describe(folder)?;
    let method = registry.parse(&description.kind, &description.config)?;
    let adapted = adapt(model, &*method, description.storage.build(), init)?;
    let parameters = adapted.host.geometry().base_parameters();
    anyhow::ensure!(
        parameters == description.base_parameters,
        "`{}` was trained on a base of {} parameters, this one has {parameters}",
        folder.display(),
        description.base_parameters
    );
    let file = folder.join(TENSORS);
    Ok(state::restore(
        adapted,
        state::load(&file)?,
        &file.display().to_string(),
    )?)
}
