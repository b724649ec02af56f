//! `evaluate`: scores of a base, with or without an adapter.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use peft_core::Host;

use super::AdapterArgs;
use crate::cli::{Compute, StudyFile, print};
use crate::data::{self, Prepared};
use crate::evaluate::Evaluator;
use crate::registry::Registry;

/// Arguments of `evaluate`.
#[derive(Args)]
pub struct Evaluate {
    #[command(flatten)]
    study: StudyFile,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    with: AdapterArgs,
    /// Leave the adapters out of so many layers, the lowest first.
    #[arg(long, value_name = "N", requires = "adapter", default_value_t = 0)]
    drop_layers: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Evaluate {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        let mut study = self.study.load()?;
        study.pin(false)?;
        let device = peft_core::device(&self.compute.device)?;
        let folder = Path::new(&study.model);
        let Prepared {
            data, tokenizer, ..
        } = data::prepare(&study.task, folder, 0, &device)?;
        let adapters = self.with.load(folder, registry, &device)?;
        if let [_, ..] = adapters.untrained() {
            let missing = adapters.untrained().join(", ");
            eprintln!(
                "note: `{}` has no {missing}: its scores are those of random ones",
                study.model
            );
        }
        let model = adapters.into_only()?;
        let layers = model.host.geometry().layers;
        anyhow::ensure!(
            self.drop_layers <= layers,
            "`--drop-layers` is {}, expected at most {layers}, the model's layers",
            self.drop_layers
        );
        let model = model.without_layers(&(0..self.drop_layers).collect());
        let evaluator = Evaluator {
            task: &study.task,
            data: &data,
            tokenizer: &tokenizer,
            batch_size: study.train.eval_batch_size,
            device,
        };
        let mut all = serde_json::Map::new();
        for (name, split) in [("dev", &data.splits.dev), ("test", &data.splits.test)] {
            let scores = evaluator.full(&model, split)?.values;
            all.insert(name.into(), serde_json::to_value(scores)?);
        }
        if self.json {
            return print(&format!("{}\n", serde_json::Value::Object(all)));
        }
        for (split, scores) in &all {
            print(&format!("{split}: {scores}\n"))?;
        }
        Ok(())
    }
}
