//! One file a verb of the command line.

pub mod chat;
pub mod compare;
pub mod evaluate;
pub mod generate;
pub mod logits;
pub mod methods;
pub mod params;
pub mod pretrain;
pub mod report;
pub mod speed;
pub mod sweep;
pub mod train;

use std::path::Path;

use anyhow::Result;
use models::Model;
use peft_core::Adapted;

use crate::adapters::{AdapterArg, Adapters};
use crate::registry::Registry;

/// Loads a base and puts a saved adapter into it, ready to compute without gradients; both may be
/// folders or names of the hub.
pub(crate) fn load(
    model: &Path,
    with: Option<&Path>,
    registry: &Registry,
    device: &burn::tensor::Device,
) -> Result<Adapted<Model>> {
    let arg = with.map(|folder| AdapterArg {
        name: "adapter".into(),
        folder: folder.into(),
    });
    Ok(Adapters::load(model, arg.as_slice(), registry, device)?.into_last())
}
