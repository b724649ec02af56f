//! `merge`: base and adapter as one plain model folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::module::Module;
use clap::Args;
use serde_json::{Map, Value};

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
    /// The task whose head to keep, of an adapter that learnt several.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
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
        let opened = super::opened(&self.adapter)?.of_task(self.task.as_deref())?;
        let (fitted, mut config) = super::fit(opened, &self.model, &storage, registry, &device)?;
        let kind = fitted.card.kind.clone();
        let merged = fitted.evaluated().valid().merge().with_context(|| {
            format!("`{kind}` has no form as a plain model; `peft-bench methods` lists what merges")
        })?;
        if let Some(table) = config.as_object_mut() {
            table.remove("quantization_config");
            table.insert("torch_dtype".into(), "float32".into());
            name_classes(table, &fitted.card.heads.names());
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

/// Writes the names of the classes into a model's configuration, from which readers count them.
fn name_classes(config: &mut Map<String, Value>, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let numbered = || names.iter().enumerate();
    let names_of: Map<_, _> = numbered()
        .map(|(id, name)| (id.to_string(), name.as_str().into()))
        .collect();
    let ids: Map<_, _> = numbered()
        .map(|(id, name)| (name.clone(), id.into()))
        .collect();
    config.remove("num_labels");
    config.insert("id2label".into(), names_of.into());
    config.insert("label2id".into(), ids.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_merged_model_says_how_many_classes_it_tells_apart() {
        let mut config = Map::from_iter([("num_labels".to_string(), 2.into())]);
        name_classes(&mut config, &[]);
        assert_eq!(
            config["num_labels"], 2,
            "nothing is known of a model's own head"
        );
        name_classes(&mut config, &["a", "b", "c"].map(String::from));
        let expected = serde_json::json!({
            "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}
        });
        assert_eq!(Value::Object(config), expected);
    }
}
