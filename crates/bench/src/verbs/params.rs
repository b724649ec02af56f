//! `params`: how many parameters a method trains.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use models::Model;
use peft_core::{Host, Init, adapt, state};

use crate::cli::print;
use crate::registry::Registry;
use crate::source;
use crate::study::MethodRow;
use crate::trial::single;

/// Arguments of `params`.
#[derive(Args)]
pub struct Params {
    /// A named shape with random weights: distilgpt2, gpt2, bert-base, distilbert, minilm.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    shape: Option<String>,
    /// Folder of a base model, or hf://organisation/name[@revision].
    #[arg(long)]
    model: Option<PathBuf>,
    /// The method as inline TOML.
    #[arg(long)]
    method: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Params {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        let device = peft_core::device("cpu")?.autodiff();
        let mut init = Init::new(0, &device);
        let model = self.base(&mut init)?;
        let row: MethodRow =
            toml::from_str(&self.method).context("`--method` is not valid TOML")?;
        let (kind, config, storage) = single(&row, registry)?;
        let method = registry.parse(&kind, &config)?;
        let geometry = model.geometry();
        let head = geometry.task_head_parameters();
        let total = geometry.base_parameters() - head;

        let adapted = adapt(model, &*method, storage.build(), &mut init)?;
        let trainable = state::trainable_parameters(&adapted);
        let percent = 100.0 * trainable as f64 / total as f64;
        if self.json {
            let json = serde_json::json!({
                "total": total, "trainable": trainable, "percent": percent, "head": head,
                "method": trainable - head.min(trainable),
            });
            return print(&format!("{json}\n"));
        }
        print(&format!(
            "base       {total:>12}\ntrainable  {trainable:>12}  ({percent:.4}%)\n{}",
            if head > 0 {
                format!("of it head {head:>12}\n")
            } else {
                String::new()
            }
        ))
    }

    fn base(&self, init: &mut Init) -> Result<Model> {
        match (&self.shape, &self.model) {
            (Some(shape), _) => source::shape(shape, init),
            (None, Some(folder)) => Ok(source::load(folder, None, init)?.model),
            (None, None) => anyhow::bail!("give `--shape` or `--model`"),
        }
    }
}
