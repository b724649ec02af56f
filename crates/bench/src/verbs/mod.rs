//! One file a verb of the command line.

pub mod compare;
pub mod evaluate;
pub mod generate;
pub mod logits;
pub mod methods;
pub mod params;
pub mod pretrain;
pub mod quantize;
pub mod report;
pub mod speed;
pub mod sweep;
pub mod train;

use std::path::Path;

use anyhow::Result;
use models::{Loaded, Model};
use peft_core::{Adapted, Init};

use crate::adapter;
use crate::registry::Registry;
use crate::source;

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
    device: &burn::tensor::Device,
) -> Result<Ready> {
    use burn::module::Module;
    let description = with.map(adapter::describe).transpose()?;
    let seed = description.as_ref().map_or(0, |d| d.seed);
    let classes = description
        .as_ref()
        .map(|d| d.labels.len())
        .filter(|count| *count > 0);
    // Which parameters an adapter trains is known on a device that tracks gradients.
    let training = device.clone().autodiff();
    let mut init = Init::new(seed, &training);
    let Loaded {
        model,
        config,
        new_layers,
    } = source::load(model, classes, &mut init)?;
    if with.is_none() && !new_layers.is_empty() {
        eprintln!(
            "note: the checkpoint has no {}; it starts random",
            new_layers.join(", ")
        );
    }
    let adapted = match with {
        Some(folder) => adapter::load(model, folder, registry, &mut Init::new(seed, &training))?,
        None => Adapted {
            host: model,
            shared: None,
        },
    };
    Ok(Ready {
        model: adapted.valid(),
        config,
    })
}
