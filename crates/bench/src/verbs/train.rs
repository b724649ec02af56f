//! `train`: one method on a study's task, its adapter saved.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::cli::{Compute, StudyFile, print};
use crate::execute;
use crate::progress;
use crate::registry::Registry;
use crate::study::{MethodRow, OneOrMany};
use crate::trial::expand;

/// Arguments of `train`.
#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    study: StudyFile,
    #[command(flatten)]
    compute: Compute,
    /// The method as inline TOML, in place of the study's methods.
    #[arg(long)]
    method: String,
    /// Learning rate in place of the study's.
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for the adapter.
    #[arg(long)]
    out: PathBuf,
    /// Show nothing but the result.
    #[arg(long)]
    quiet: bool,
}

impl Train {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        let mut study = self.study.load()?;
        let row: MethodRow =
            toml::from_str(&self.method).context("`--method` is not valid TOML")?;
        study.method = vec![row];
        study.seeds = vec![self.seed];
        if let Some(rate) = self.learning_rate {
            study.train.learning_rate = OneOrMany::One(rate);
        }
        study.pin(self.quiet)?;
        let trials = expand(&study, registry, &self.compute.device, &BTreeMap::new())?;
        let [trial] = &trials[..] else {
            anyhow::bail!(
                "`train` runs one trial, this makes {}; use `sweep`",
                trials.len()
            )
        };
        let mut progress = progress::display(&trial.id, self.quiet);
        let record = execute::run(trial, registry, Some(&self.out), &mut *progress)?;
        anyhow::ensure!(record.status.is_ok(), "{}", record.status.reason());
        for (split, scores) in &record.scores {
            let scores: Vec<_> = scores.iter().map(|(k, v)| format!("{k} {v:.4}")).collect();
            print(&format!("{split}: {}\n", scores.join(", ")))?;
        }
        print(&format!("adapter: {}\n", self.out.display()))
    }
}
