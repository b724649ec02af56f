//! `merge`: base and adapter as one plain model folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::module::Module;
use clap::Args;

use crate::cli::print;
use crate::hub::Kind;
use crate::quantize::quantize;
use crate::registry::Registry;
use crate::source;
use crate::storage::{StorageArgs, StorageName, StorageSpec};

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
    /// Pack the merged weights again (nf4, fp4, int8) and show what that loses; dense where not given.
    #[arg(long, value_enum, value_name = "STORAGE")]
    requantize: Option<StorageName>,
    #[command(flatten)]
    storage: StorageArgs,
}

impl Merge {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        crate::cli::check_free(&self.out)?;
        let device = peft_core::device("cpu")?;
        let storage = match (self.storage.storage, self.requantize) {
            // The other options say how to pack again.
            (StorageName::F32, Some(_)) => StorageSpec::F32,
            _ => self.storage.spec()?,
        };
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
        let model = source::folder(&self.model, Kind::Model)?;
        let Some(name) = self.requantize else {
            models::save(&merged, &config, &self.out)?;
            source::copy_tokenizer(&model, &self.out)?;
            return print(&format!("merged model: {}\n", self.out.display()));
        };
        let again = self.storage.packing.of(name)?;
        let again = again
            .build()
            .context("`--requantize` takes nf4, fp4 or int8")?;
        let parent = self.out.parent().filter(|p| !p.as_os_str().is_empty());
        let dense = tempfile::tempdir_in(parent.unwrap_or(Path::new(".")))?;
        models::save(&merged, &config, dense.path())?;
        source::copy_tokenizer(&model, dense.path())?;
        let losses = quantize(dense.path(), again, &self.out)?;
        let shown = super::quantize::table(&losses);
        print(&format!("{shown}merged model: {}\n", self.out.display()))
    }
}
