//! `convert`: an adapter from any format into another.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

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
    #[command(flatten)]
    storage: StorageArgs,
}

impl Convert {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        crate::cli::check_free(&self.out)?;
        let device = peft_core::device("cpu")?;
        let storage = self.storage.spec()?;
        let (fitted, config) =
            super::fitted(&self.model, &self.adapter, &storage, registry, &device)?;
        fitted.write(self.to, &config, &self.name, &self.out)?;
        let kind = &fitted.card.kind;
        print(&format!("{kind} adapter: {}\n", self.out.display()))
    }
}
