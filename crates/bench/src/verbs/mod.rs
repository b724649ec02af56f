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

use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::Args;
use peft_core::Init;

use crate::adapter::{self, Base, Fitted, Opened};
use crate::adapters::{AdapterArg, Adapters};
use crate::hub::Kind;
use crate::registry::Registry;
use crate::source;
use crate::storage::{StorageArgs, StorageSpec};

/// Adapters for a base model, and how that is stored.
#[derive(Args, Default)]
pub(crate) struct AdapterArgs {
    /// Folder or hub name of a trained adapter, as DIR or NAME=DIR; may be given several times.
    #[arg(long, value_name = "[NAME=]DIR")]
    pub(crate) adapter: Vec<AdapterArg>,
    /// Use the adapters as one method made of them: `stack`, `average`, `parallel_block`, or its keys
    /// as inline TOML, as in 'kind = "average"
    /// weights = [3, 1]'.
    #[arg(long, value_name = "KIND")]
    pub(crate) compose: Option<String>,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
}

impl AdapterArgs {
    /// Loads a base and the adapters for it, ready to compute without gradients; all may be folders
    /// or names of the hub. `drop_layers` are those that go without them, where they are not to say so
    /// themselves.
    pub(crate) fn load(
        &self,
        model: &Path,
        drop_layers: Option<usize>,
        registry: &Registry,
        device: &Device,
    ) -> Result<Adapters> {
        let storage = self.storage.spec()?;
        let dropping = |arg: &AdapterArg| AdapterArg {
            drop_layers,
            ..arg.clone()
        };
        let adapters: Vec<_> = self.adapter.iter().map(dropping).collect();
        let adapters = Adapters::load(model, &storage, &adapters, registry, device)?;
        let Some(composition) = &self.compose else {
            return Ok(adapters);
        };
        ensure!(
            self.adapter.iter().all(|arg| arg.weight.is_none()),
            "weights and `--compose` do not go together; weigh with `--compose 'kind = \"average\"'`"
        );
        adapters.composed(composition, registry)
    }
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
