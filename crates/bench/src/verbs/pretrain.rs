//! `pretrain`: makes the quickstart's base model.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tasks::scenario::{ScenarioConfig, VOCABULARY};

use crate::cli::{Compute, print};
use crate::pretrain::{Pretraining, pretrain};
use crate::progress;
use crate::schedule::Decay;
use crate::study::{OneOrMany, TrainConfig};

/// Arguments of `pretrain`.
#[derive(Args)]
pub struct Pretrain {
    /// Folder for config.json, model.safetensors and tokenizer.json.
    #[arg(long)]
    out: PathBuf,
    /// Seed of the scenario whose corpus is learnt; studies name the same.
    #[arg(long, default_value_t = 1)]
    scenario: u64,
    /// Seed of the weights and the order of the data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Width of the model.
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Layers.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Attention heads.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Passes over the corpus.
    #[arg(long, default_value_t = 7)]
    epochs: usize,
    /// Rows of a batch.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Positions of the model.
    #[arg(long, default_value_t = 128)]
    positions: usize,
    /// Standard deviation of the starting weights.
    #[arg(long, default_value_t = 0.08)]
    initializer_range: f64,
    /// Peak learning rate.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    #[command(flatten)]
    compute: Compute,
    /// Show nothing but the result.
    #[arg(long)]
    quiet: bool,
}

impl Pretrain {
    pub(crate) fn run(self) -> Result<()> {
        self.compute.clone().run(|| self.work())
    }

    fn work(&self) -> Result<()> {
        let plan = Pretraining {
            scenario: self.scenario,
            sizes: ScenarioConfig::default(),
            vocabulary: VOCABULARY,
            shape: (self.width, self.layers, self.heads),
            positions: self.positions,
            initializer_range: self.initializer_range,
            seed: self.seed,
        };
        let config = TrainConfig {
            learning_rate: OneOrMany::One(self.learning_rate),
            epochs: self.epochs,
            batch_size: self.batch_size,
            schedule: Decay::Cosine,
            ..TrainConfig::default()
        };
        let mut progress = progress::display("pretrain", self.quiet);
        let loss = pretrain(
            &plan,
            &config,
            &self.compute.device,
            &self.out,
            &mut *progress,
        )?;
        print(&format!(
            "held-out loss {loss:.4}\nmodel: {}\n",
            self.out.display()
        ))
    }
}
