//! `convert`: an adapter from any format into another.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use peft_core::Host;

use crate::adapter::Format;
use crate::cli::print;
use crate::registry::Registry;
use crate::storage::StorageArgs;

/// Arguments of `convert`.
#[derive(Args)]
pub struct Convert {
    /// Folder of the base model.
    #[arg(long)]
    model: PathBuf,
    /// Folder of the adapter, in any format.
    #[arg(long)]
    adapter: PathBuf,
    /// The format to write.
    #[arg(long, value_enum)]
    to: Format,
    /// What AdapterHub is to call the adapter.
    #[arg(long, default_value = "adapter")]
    name: String,
    /// Folder for the result.
    #[arg(long)]
    out: PathBuf,
    /// The task whose head to write, of an adapter that learnt several.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Leave the adapter out of so many layers, the lowest first; as it says itself where not given.
    #[arg(long, value_name = "N")]
    drop_layers: Option<usize>,
    /// Mix the embeddings of the tasks of a `hyper` adapter with these weights, one for each, in place
    /// of every text's own.
    #[arg(
        long,
        value_name = "W,W,...",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    interpolate: Option<Vec<f64>>,
    #[command(flatten)]
    storage: StorageArgs,
}

impl Convert {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        crate::cli::check_free(&self.out)?;
        let device = peft_core::device("cpu")?;
        let storage = self.storage.spec()?;
        let mut opened = super::opened(&self.adapter)?;
        if self.task.is_some() || self.to != Format::Native {
            opened = opened.of_task(self.task.as_deref())?;
        }
        let (mut fitted, config) = super::fit(opened, &self.model, &storage, registry, &device)?;
        if let Some(weights) = &self.interpolate {
            fitted = fitted.interpolated(weights, registry)?;
        }
        ensure!(
            self.task.is_none() || fitted.method.tasks().is_none(),
            "`{}` goes by the number of a text's task, so that no task can be taken out of it",
            fitted.card.kind
        );
        if let Some(dropped) = self.drop_layers {
            let layers = fitted.model.host.geometry().layers;
            ensure!(
                dropped <= layers,
                "`--drop-layers` is {dropped}, expected at most {layers}, the model's layers"
            );
            fitted.card.dropped_layers = dropped;
        }
        if self.to != Format::Native {
            fitted = fitted.narrowed(registry)?;
        }
        fitted.write(self.to, &config, &self.name, &self.out)?;
        let kind = &fitted.card.kind;
        print(&format!("{kind} adapter: {}\n", self.out.display()))
    }
}
