//! `params`: how many parameters a method trains.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use models::Model;
use peft_core::{Host, Init, adapt, state};

use crate::cli::print;
use crate::registry::Registry;
use crate::source;
use crate::study::MethodRow;
use crate::trial::single;
use crate::wording;

/// Arguments of `params`.
#[derive(Args)]
pub struct Params {
    #[command(flatten)]
    base: Base,
    /// The method as inline TOML.
    #[arg(long)]
    method: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The base to count.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Base {
    /// A named shape with random weights.
    #[arg(long, value_parser = source::shape_names())]
    shape: Option<String>,
    /// Folder of a base model, or hf://organisation/name[@revision].
    #[arg(long)]
    model: Option<PathBuf>,
}

impl Params {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        let device = peft_core::device("cpu")?.autodiff();
        let mut init = Init::new(0, &device);
        let model = self.base.load(&mut init)?;
        let row = MethodRow::inline(&self.method)?;
        let (kind, config, storage) = single(&row, registry)?;
        let config = wording::for_model(config, self.base.model.as_deref(), &model)?;
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
}

impl Base {
    fn load(&self, init: &mut Init) -> Result<Model> {
        match (&self.shape, &self.model) {
            (Some(shape), _) => source::shape(shape, init),
            (None, Some(folder)) => Ok(source::load(folder, None, init)?.model),
            (None, None) => anyhow::bail!("give `--shape` or `--model`"),
        }
    }
}
