//! One file a verb of the command line.

pub mod compare;
pub mod convert;
pub mod evaluate;
pub mod generate;
pub mod logits;
pub mod merge;
pub mod methods;
pub mod params;
pub mod pretrain;
pub mod report;
pub mod speed;
pub mod sweep;
pub mod train;

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::Device;
use models::Model;
use peft_core::{Adapted, Init};

use crate::adapter::{self, Fitted};
use crate::registry::Registry;
use crate::source;
use crate::trial::StorageSpec;

/// A base model with or without an adapter, ready to compute without gradients.
pub(crate) struct Ready {
    pub(crate) model: Adapted<Model>,
    pub(crate) config: serde_json::Value,
}

/// Loads a base folder and puts a saved adapter into it.
pub(crate) fn load(
    model: &Path,
    with: Option<&Path>,
    registry: &Registry,
    device: &Device,
) -> Result<Ready> {
    if let Some(adapter) = with {
        let (fitted, config) = fitted(model, adapter, &StorageSpec::F32, registry, device)?;
        return Ok(Ready {
            model: fitted.model.valid(),
            config,
        });
    }
    let loaded = source::load(model, None, &mut Init::new(0, device))?;
    if !loaded.new_layers.is_empty() {
        eprintln!(
            "note: the checkpoint has no {}; it starts random",
            loaded.new_layers.join(", ")
        );
    }
    Ok(Ready {
        model: Adapted::plain(loaded.model),
        config: loaded.config,
    })
}

/// A base with a saved adapter in it, ready to train on, and the base's `config.json`. `storage` is
/// how the frozen weights of a foreign adapter are stored.
pub(crate) fn fitted(
    model: &Path,
    adapter: &Path,
    storage: &StorageSpec,
    registry: &Registry,
    device: &Device,
) -> Result<(Fitted, serde_json::Value)> {
    let opened = adapter::open(adapter)?;
    // Which parameters an adapter trains is known on a device that tracks gradients.
    let training = device.clone().autodiff();
    let seed = opened.seed();
    let loaded = source::load(model, opened.classes(), &mut Init::new(seed, &training))?;
    let mut init = Init::new(seed, &training);
    let fitted = opened.fit(loaded.model, storage, registry, &mut init)?;
    Ok((fitted, loaded.config))
}
