//! One file a verb of the command line.

pub mod chat;
pub mod compare;
pub mod convert;
pub mod evaluate;
pub mod generate;
pub mod logits;
pub mod merge;
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
use burn::tensor::Device;
use peft_core::Init;

use crate::adapter::{self, Base, Fitted, Opened};
use crate::adapters::{AdapterArg, Adapters};
use crate::hub::Kind;
use crate::registry::Registry;
use crate::source;
use crate::storage::{StorageArgs, StorageSpec};

/// Loads a base and puts a saved adapter into it, ready to compute without gradients; both may be
/// folders or names of the hub. `drop_layers` are those that go without it, where it is not to say so
/// itself.
pub(crate) fn load(
    model: &Path,
    with: Option<&Path>,
    drop_layers: Option<usize>,
    storage: &StorageArgs,
    registry: &Registry,
    device: &Device,
) -> Result<Adapters> {
    let arg = with.map(|folder| AdapterArg {
        name: "adapter".into(),
        folder: folder.into(),
        weight: None,
        drop_layers,
    });
    Adapters::load(model, &storage.spec()?, arg.as_slice(), registry, device)
}

/// A saved adapter, as read from a folder or the hub.
pub(crate) fn opened(adapter: &Path) -> Result<Opened> {
    adapter::open(&source::folder(adapter, Kind::Adapter)?)
}

/// A base with an adapter in it, ready to train on, and the base's `config.json`. `storage` is how the
/// frozen weights are to be stored, where the adapter does not say it itself.
pub(crate) fn fit(
    opened: Opened,
    model: &Path,
    storage: &StorageSpec,
    registry: &Registry,
    device: &Device,
) -> Result<(Fitted, serde_json::Value)> {
    // Which parameters an adapter trains is known on a device that tracks gradients.
    let training = device.clone().autodiff();
    let seed = opened.seed();
    let loaded = source::load(model, opened.classes(), &mut Init::new(seed, &training))?;
    let mut init = Init::new(seed, &training);
    let base = Base::stored(loaded.model, storage)?;
    let fitted = opened.fit(&base, registry, &mut init)?;
    Ok((fitted, loaded.config))
}
