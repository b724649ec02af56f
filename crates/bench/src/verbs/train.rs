//! `train`: one method on a study's task, or on batches given as tensors; its adapter saved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use clap::Args;
use models::Model;
use peft_core::{Adapted, Init, Looked, Method, adapt, state};

use crate::adapter::{Card, Fitted, Format};
use crate::cli::{Compute, StudyFile, pair, print};
use crate::fixed::Steps;
use crate::layer_drop::AdapterDrop;
use crate::registry::Registry;
use crate::storage::StorageArgs;
use crate::study::{MethodRow, OneOrMany};
use crate::trial::{StorageSpec, expand, single};
use crate::{execute, fixed, look, parts, progress, source, wording};

/// Arguments of `train`.
#[derive(Args)]
pub struct Train {
    /// The study file whose task and settings are used.
    #[arg(required_unless_present = "batches", conflicts_with = "batches")]
    study: Option<PathBuf>,
    /// Value of a variable the study uses, as NAME=VALUE; the environment is used otherwise.
    #[arg(long = "var", value_parser = pair)]
    variables: Vec<(String, String)>,
    /// The method as inline TOML, in place of the study's methods.
    #[arg(long, required_unless_present = "init_adapter")]
    method: Option<String>,
    /// Learning rate in place of the study's.
    #[arg(long, required_unless_present = "study")]
    learning_rate: Option<f64>,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Compute layers again in the backward pass, in place of keeping their activations.
    #[arg(long)]
    checkpointing: bool,
    /// Folder for the adapter.
    #[arg(long)]
    out: PathBuf,
    /// Show nothing but the result.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    fixed: Fixed,
    #[command(flatten)]
    compute: Compute,
}

/// Options of training on given batches, one AdamW step each at a constant rate.
#[derive(Args)]
struct Fixed {
    /// File with `input_ids`, `attention_mask` `[steps, batch, sequence]` and `labels`.
    #[arg(long, requires = "model")]
    batches: Option<PathBuf>,
    /// Folder of the base model, with `--batches`.
    #[arg(long, requires = "batches")]
    model: Option<PathBuf>,
    /// Adapter to go on from, in any format, with `--batches`.
    #[arg(long, requires = "batches", conflicts_with = "method")]
    init_adapter: Option<PathBuf>,
    /// Weight decay, with `--batches`.
    #[arg(long, default_value_t = 0.01)]
    weight_decay: f64,
    #[command(flatten)]
    storage: StorageArgs,
}

impl Train {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| match &self.study {
            Some(study) => self.on_study(study, registry),
            None => self.on_batches(registry),
        })
    }

    fn row(&self) -> Result<MethodRow> {
        MethodRow::inline(self.method.as_deref().unwrap_or_default())
    }

    fn on_study(&self, study: &Path, registry: &Registry) -> Result<()> {
        let file = StudyFile {
            study: study.into(),
            variables: self.variables.clone(),
        };
        let mut study = file.load()?;
        study.method = vec![self.row()?];
        study.seeds = vec![self.seed];
        if let Some(rate) = self.learning_rate {
            study.train.learning_rate = OneOrMany::One(rate);
        }
        study.train.checkpointing |= self.checkpointing;
        anyhow::ensure!(
            !(self.checkpointing && study.train.adversarial.is_some()),
            "`--checkpointing` does not go with the study's `train.adversarial`"
        );
        study.pin(self.quiet)?;
        anyhow::ensure!(
            study.train.learning_rate.values().len() == 1,
            "the study lists {} learning rates; choose one with `--learning-rate`",
            study.train.learning_rate.values().len()
        );
        anyhow::ensure!(
            self.fixed.storage.spec()? == StorageSpec::F32,
            "`--storage` goes with `--batches`; in a study it is a key of the method: \
             `--method 'storage = \"nf4\"'`"
        );
        crate::cli::check_free(&self.out)?;
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
        let dropped = trial.train.adapter_drop.map_or(0, AdapterDrop::evaluated);
        if dropped > 0 {
            eprintln!(
                "note: these scores are those without the adapter in the lowest {dropped} layers, as \
                 it is used from now on; `evaluate --drop-layers N` tries other numbers"
            );
        }
        print(&format!("adapter: {}\n", self.out.display()))
    }

    fn on_batches(&self, registry: &Registry) -> Result<()> {
        crate::cli::check_free(&self.out)?;
        let required = "the command line requires it without a study";
        let model = self.fixed.model.as_deref().context(required)?;
        let batches = self.fixed.batches.as_deref().context(required)?;
        let rate = self.learning_rate.context(required)?;
        let (mut fitted, config, format) = self.start(model, registry)?;
        let device = peft_core::device(&self.compute.device)?.autodiff();
        let mut batches = fixed::read(batches, &fitted.model, &device)?;
        for batch in &mut batches {
            batch.drops.layers = (0..fitted.card.dropped_layers).collect();
        }
        let steps = Steps {
            rate,
            weight_decay: self.fixed.weight_decay,
            checkpointing: self.checkpointing,
        };
        let (trained, losses) = fixed::train(fitted.model, &*fitted.method, batches, steps)?;
        for (step, loss) in losses.iter().enumerate() {
            print(&format!("step {}: loss {loss:.6}\n", step + 1))?;
        }
        fitted.model = trained;
        fitted.write(format, &config, "adapter", &self.out)?;
        let text = serde_json::to_string(&losses)?;
        state::write_atomically(&self.out.join("losses.json"), text.as_bytes())?;
        print(&format!("adapter: {}\n", self.out.display()))
    }

    /// The model before its first step, and the format its adapter is to be written in: that of
    /// the adapter it starts from.
    fn start(
        &self,
        model: &Path,
        registry: &Registry,
    ) -> Result<(Fitted, serde_json::Value, Format)> {
        let device = peft_core::device(&self.compute.device)?;
        if let Some(adapter) = &self.fixed.init_adapter {
            let storage = self.fixed.storage.spec()?;
            let opened = super::opened(adapter)?;
            anyhow::ensure!(
                !opened.heads().are_of_tasks(),
                "`--init-adapter {}` has heads for several tasks, and `--batches` are of one; \
                 `peft-bench convert --task NAME` takes one out",
                adapter.display()
            );
            let format = opened.format();
            let (fitted, config) = super::fit(opened, model, &storage, registry, &device)?;
            return Ok((fitted, config, format));
        }
        let (kind, config, storage) = single(&self.row()?, registry)?;
        let training = device.autodiff();
        let loaded = source::load(model, None, &mut Init::new(self.seed, &training))?;
        let config = wording::for_model(config, Some(model), &loaded.model)?;
        let method = registry.parse(&kind, &config)?;
        parts::bring(&*method, &loaded.model, &training)?;
        let looked = self.look(&loaded.model, &*method, &storage, &training)?;
        let (config, method) = match looked {
            Some(Looked { config, method }) => (config, method),
            None => (config, method),
        };
        let mut init = Init::new(self.seed, &training);
        let model = adapt(loaded.model, &*method, storage.build(), &mut init)?;
        let card = Card {
            kind,
            config,
            storage,
            seed: Some(self.seed),
            ..Card::default()
        };
        let fitted = Fitted {
            model: model.train(),
            method,
            card,
        };
        Ok((fitted, loaded.config, Format::Native))
    }

    /// The method after a look at the given batches, if it looks at data.
    fn look(
        &self,
        model: &Model,
        method: &dyn Method,
        storage: &StorageSpec,
        device: &Device,
    ) -> Result<Option<Looked>> {
        if method.looks_at() == 0 {
            return Ok(None);
        }
        let file = self.fixed.batches.as_deref();
        let file = file.context("the command line requires it without a study")?;
        let batches = fixed::read(file, &Adapted::plain(model.clone()), device)?;
        look::look(model, method, storage, batches, (self.seed, device))
    }
}
