//! Adapters on disk, in our own format, HF PEFT's and AdapterHub's.
//!
//! [`open`] finds out which format a folder has; [`Opened::fit`] puts the adapter into its base.
//! [`Fitted`] can be written in any format its method has a form in.

mod base;
mod dropped;
mod early;
mod files;
mod head;
mod hub;
mod interpolated;
mod native;
mod peft;
mod setup;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::TensorData;
use models::Model;
use peft_core::state::Tensors;
use peft_core::{Adapted, Geometry, Init, Method, geometry_for};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::heads::Heads;
use crate::layer_drop::{AdapterDrop, without_lowest};
use crate::registry::Registry;
use crate::trial::{StorageSpec, Trial};

pub use base::Base;

/// The formats adapters are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Format {
    /// Our own: `adapter.json` and `adapter.safetensors`.
    Native,
    /// HF PEFT: `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// AdapterHub: `adapter_config.json`, `adapter.safetensors`, and the head beside them.
    #[value(name = "adapterhub")]
    AdapterHub,
}

/// An adapter folder as read, not yet put into a model.
pub struct Opened {
    folder: PathBuf,
    format: Format,
    config: Map<String, Value>,
    tensors: Tensors,
}

/// What an adapter is, whatever format it came from.
#[derive(Clone, Debug, Default)]
pub struct Card {
    /// The method's kind.
    pub kind: String,
    /// Its configuration.
    pub config: Value,
    /// How the frozen weights were stored.
    pub storage: StorageSpec,
    /// Seed of the start; none where all there is to know is in the file.
    pub seed: Option<u64>,
    /// The classes, for a classifier.
    pub heads: Heads,
    /// How many layers it is used without, the lowest.
    pub dropped_layers: usize,
}

/// A base model with an adapter in it.
pub struct Fitted {
    /// The model.
    pub model: Adapted<Model>,
    /// Its method.
    pub method: Arc<dyn Method>,
    /// What the adapter is.
    pub card: Card,
}

/// Reads an adapter folder of any format.
///
/// # Errors
/// If it is none, or a file of it is damaged.
pub fn open(folder: &Path) -> Result<Opened> {
    let foreign = folder.join(files::CONFIG);
    let (format, config) = if folder.join(native::DESCRIPTION).exists() {
        (
            Format::Native,
            files::json(&folder.join(native::DESCRIPTION))?,
        )
    } else if foreign.exists() {
        let config = files::json(&foreign)?;
        let format = match (
            config.contains_key("peft_type"),
            config.contains_key("config"),
        ) {
            (true, _) => Format::Peft,
            (false, true) => Format::AdapterHub,
            (false, false) => bail!(
                "`{}` has neither `peft_type` (HF PEFT) nor `config` (AdapterHub)",
                foreign.display()
            ),
        };
        (format, config)
    } else if let Some(setup) = setup::config(folder)? {
        (Format::AdapterHub, setup)
    } else {
        bail!(
            "`{}` is no adapter folder: it has neither `{}` nor `{}`",
            folder.display(),
            native::DESCRIPTION,
            files::CONFIG
        );
    };
    let tensors = match format {
        Format::Native => native::tensors(folder)?,
        Format::Peft => peft::tensors(folder)?,
        Format::AdapterHub if setup::is_one(&config) => setup::tensors(folder, &config)?,
        Format::AdapterHub => hub::tensors(folder)?,
    };
    Ok(Opened {
        folder: folder.into(),
        format,
        config,
        tensors,
    })
}

/// Kind and configuration of the adapter in a folder of our own format, and a digest of its files.
///
/// # Errors
/// If it is no such folder.
pub fn describe(folder: &Path) -> Result<(String, Value, String)> {
    ensure!(
        folder.join(native::DESCRIPTION).exists(),
        "`{}` has no `{}`; {}",
        folder.display(),
        native::DESCRIPTION,
        foreign_part()
    );
    native::describe(folder)
}

/// What to do about a part in a format that does not say alone what it is.
fn foreign_part() -> &'static str {
    "a part is an adapter in our own format: `peft-bench convert --to native` makes it one"
}

impl Opened {
    /// The folder's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The seed from which a model of it must start.
    pub fn seed(&self) -> u64 {
        self.config.get("seed").and_then(Value::as_u64).unwrap_or(0)
    }

    /// The number of classes its head has, if it brings one.
    pub fn classes(&self) -> Option<usize> {
        if let Some(outputs) = self.heads().outputs() {
            return Some(outputs);
        }
        // Whatever a format keeps of a weight first, a bias has a value for every class.
        let last_layer = [
            "classifier.bias",
            "classifier.out_proj.bias",
            "classifier.weight",
            "classifier.out_proj.weight",
        ];
        let of = |name: &&str| {
            let mut tensors = self.tensors.iter();
            let found = tensors.find(|(key, _)| peft_core::exchange::path_ends_with(key, name));
            found.and_then(|(_, data)| data.shape().first().copied())
        };
        last_layer.iter().find_map(of)
    }

    /// Puts an adapter in our own format into its base, but for the task head it was trained with.
    ///
    /// # Errors
    /// If it is in another format, or its tensors do not fit.
    pub fn fit_body(
        self,
        model: Model,
        method: &dyn Method,
        init: &mut Init,
    ) -> Result<Adapted<Model>> {
        let place = format!("cannot load the adapter `{}`", self.folder.display());
        ensure!(self.format == Format::Native, "{place}: {}", foreign_part());
        native::fit_body(self, model, method, init).context(place)
    }

    /// Puts the adapter into its base; `init` must be on the device of the model.
    ///
    /// # Errors
    /// If no method here reads it, a setting cannot be followed, or its tensors do not fit.
    pub fn fit(self, base: &Base, registry: &Registry, init: &mut Init) -> Result<Fitted> {
        let place = format!("cannot load the adapter `{}`", self.folder.display());
        let fitted = match self.format {
            Format::Native => native::fit(self, base, registry, init),
            Format::Peft => peft::fit(self, base, registry, init),
            Format::AdapterHub if setup::is_one(&self.config) => {
                setup::fit(self, base, registry, init)
            }
            Format::AdapterHub => hub::fit(self, base, registry, init),
        };
        fitted.context(place)
    }
}

/// Puts a saved adapter of any format into its base model.
///
/// # Errors
/// As [`open`] and [`Opened::fit`].
pub fn load(model: Model, folder: &Path, registry: &Registry, init: &mut Init) -> Result<Fitted> {
    open(folder)?.fit(&Base::new(model), registry, init)
}

/// Writes a trial's adapter in our own format.
///
/// # Errors
/// If the folder cannot be written.
pub fn save(model: &Adapted<Model>, trial: &Trial, heads: &Heads, folder: &Path) -> Result<()> {
    let card = Card {
        kind: trial.kind.clone(),
        config: trial.config.clone(),
        storage: trial.storage.clone(),
        seed: Some(trial.seed),
        heads: heads.clone(),
        dropped_layers: trial.train.adapter_drop.map_or(0, AdapterDrop::evaluated),
    };
    native::write(model, &card, folder)
}

impl Fitted {
    /// Writes the adapter in a format; `base` is the base's `config.json`, `name` what AdapterHub
    /// calls the adapter.
    ///
    /// # Errors
    /// If the method has no form in the format, or the folder cannot be written.
    pub fn write(&self, format: Format, base: &Value, name: &str, folder: &Path) -> Result<()> {
        match format {
            Format::Native => native::write(&self.model, &self.card, folder),
            Format::Peft => peft::write(self, base, folder),
            Format::AdapterHub if !self.method.parts().is_empty() => {
                setup::write(self, base, name, folder)
            }
            Format::AdapterHub => hub::write(self, base, name, folder),
        }
    }

    /// The model as the adapter is used: without what the method put into the layers it drops.
    pub fn evaluated(&self) -> Adapted<Model> {
        without_lowest(&self.model, self.card.dropped_layers).into_owned()
    }

    /// The base as the method sees it.
    fn geometry(&self) -> Geometry {
        geometry_for(&self.model.host, &*self.method)
    }
}

/// A foreign adapter in a fresh model, before its values are put in.
///
/// # Errors
/// If the configuration asks for more parameters than `tensors` could fill: nothing is allocated
/// for it then.
fn fresh(
    (kind, config, method): (String, Value, Arc<dyn Method>),
    tensors: &Tensors,
    base: &Base,
    init: &mut Init,
) -> Result<Fitted> {
    let geometry = geometry_for(base.model(), &*method);
    let values: usize = tensors.values().map(TensorData::num_elements).sum();
    bounded(&*method, &geometry, values)?;
    let (model, storage) = base.adapt(&*method, &StorageSpec::F32, init)?;
    let card = Card {
        kind,
        config,
        storage,
        ..Card::default()
    };
    Ok(Fitted {
        model,
        method,
        card,
    })
}

/// Refuses methods that ask for more parameters than this many values could fill.
fn bounded(method: &dyn Method, geometry: &Geometry, values: usize) -> Result<()> {
    // A composition looks at what its parts make, so they come first.
    for part in method.parts() {
        bounded(part.method(), geometry, values)?;
    }
    method.check(geometry)?;
    let asked = method.parameters(geometry) as u128;
    // Some formats leave out what can be made again; none leaves out the most of it.
    let most = 64 * values as u128 + geometry.base_parameters() as u128;
    ensure!(
        asked <= most,
        "the configuration describes {asked} parameters, the file holds {values} values"
    );
    Ok(())
}
