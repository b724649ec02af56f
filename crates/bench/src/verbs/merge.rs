//! `merge`: base and adapter as one plain model folder.

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::module::Module;
use clap::Args;

use crate::cli::{StorageArgs, print};
use crate::registry::Registry;
use crate::source;

/// Arguments of `merge`.
#[derive(Args)]
pub struct Merge {
    /// Folder of the base model.
    #[arg(long)]
    model: PathBuf,
    /// Folder of the adapter, in any format.
    #[arg(long)]
    adapter: PathBuf,
    /// Folder for the merged model.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    storage: StorageArgs,
}

impl Merge {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        crate::cli::check_free(&self.out)?;
        let device = peft_core::device("cpu")?;
        let storage = self.storage.spec()?;
        let (fitted, mut config) =
            super::fitted(&self.model, &self.adapter, &storage, registry, &device)?;
        let kind = fitted.card.kind.clone();
        let merged = fitted.model.valid().merge().with_context(|| {
            format!("`{kind}` has no form as a plain model; `peft-bench methods` lists what merges")
        })?;
        if let Some(table) = config.as_object_mut() {
            table.remove("quantization_config");
            table.insert("torch_dtype".into(), "float32".into());
        }
        models::save(&merged, &config, &self.out)?;
        source::copy_tokenizer(&self.model, &self.out)?;
        print(&format!("merged model: {}\n", self.out.display()))
    }
}
