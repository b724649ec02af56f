//! `evaluate`: scores of a base, with or without an adapter.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::AdapterArgs;
use crate::cli::{Compute, StudyFile, print};
use crate::data::{self, Data, Prepared};
use crate::evaluate::Evaluator;
use crate::heads::Heads;
use crate::registry::Registry;
use crate::study::Task;

/// Arguments of `evaluate`.
#[derive(Args)]
pub struct Evaluate {
    #[command(flatten)]
    study: StudyFile,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    with: AdapterArgs,
    /// Leave the adapters out of so many layers, the lowest first; as they say themselves where not
    /// given.
    #[arg(long, value_name = "N", requires = "adapter")]
    drop_layers: Option<usize>,
    /// Score one task of a mixture alone; or, for a study of one task, which of its tasks the adapter
    /// learnt it as.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
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
        let (task, number) = self.chosen(&study.task)?;
        let Prepared {
            mut data,
            tokenizer,
            ..
        } = data::prepare(task, folder, 0, &device)?;
        let drop = self.drop_layers;
        let adapters = self.with.load(folder, drop, registry, &device)?;
        if let [_, ..] = adapters.untrained() {
            let missing = adapters.untrained().join(", ");
            eprintln!(
                "note: `{}` has no {missing}: its scores are those of random ones",
                study.model
            );
        }
        self.place(&mut data, task, number, adapters.heads())?;
        let model = adapters.into_only()?;
        let evaluator = Evaluator {
            task,
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

    /// The task to score, and its number where it is one of a mixture.
    fn chosen<'a>(&self, task: &'a Task) -> Result<(&'a Task, Option<usize>)> {
        let (Task::Mixture(mixture), Some(wanted)) = (task, &self.task) else {
            return Ok((task, None));
        };
        let tasks = mixture.numbered();
        let number = tasks.iter().position(|(name, _)| name == wanted);
        let number = number.with_context(|| {
            let known: Vec<_> = tasks.iter().map(|(name, _)| *name).collect();
            let known = known.join("`, `");
            format!("`--task` is `{wanted}`, expected one of the study's tasks `{known}`")
        })?;
        Ok((tasks[number].1, Some(number)))
    }

    /// Puts the examples where the adapter has their task.
    fn place(
        &self,
        data: &mut Data,
        task: &Task,
        number: Option<usize>,
        heads: Heads,
    ) -> Result<()> {
        if let Task::Mixture(_) = task {
            // A base alone has the outputs of no task, which scoring says.
            return match self.with.adapter.is_empty() {
                false => heads.check_same(&data.heads),
                true => Ok(()),
            };
        }
        if heads.are_of_tasks() {
            let number = heads.number(self.task.as_deref())?;
            let name = self.task.as_deref().unwrap_or_default();
            heads.check_labels(number, name, data.heads.labels(0))?;
            data.become_task(number, heads);
        } else if let Some(number) = number {
            let own = data.heads.clone();
            data.become_task(number, own);
        } else {
            ensure!(
                self.task.is_none(),
                "`--task` goes with a study of several tasks, or an adapter that learnt several"
            );
        }
        Ok(())
    }
}
