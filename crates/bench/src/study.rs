//! Study files: the question, and what differs from the defaults.

mod mixture;
mod task;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::adversarial::Adversarial;
use crate::error::BenchError;
use crate::groups::{self, Freeze};
use crate::hub::RepoId;
use crate::layer_drop::{self, AdapterDrop};
use crate::plain;
use crate::schedule::Decay;

pub use mixture::Mixture;
pub use task::{DataSource, Files, Limit, ScenarioSource, Task};

/// A study as its file states it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Short name; the default output folder carries it.
    pub name: String,
    /// What the study asks.
    pub question: String,
    /// Folder of the base model, relative to the study file, or a name of the hub
    /// (`hf://organisation/name@revision`); may hold `${VARIABLES}`.
    pub model: String,
    /// Data, prompt and metric.
    pub task: Task,
    /// Training settings every method shares.
    #[serde(default)]
    pub train: TrainConfig,
    /// Seeds; every method is run with each.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// On how many of the seeds, the first ones, learning rates are tried; the other seeds run at
    /// the best of them on dev. All of them where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning_seeds: Option<usize>,
    /// Number of test prompts answered before and after training, for the report.
    #[serde(default)]
    pub samples: usize,
    /// The methods compared, each with its sizes and learning rates.
    pub method: Vec<MethodRow>,
}

fn default_seeds() -> Vec<u64> {
    vec![1, 2, 3]
}

/// Training settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Peak learning rates to try; the best on dev is reported.
    pub learning_rate: OneOrMany<f64>,
    /// Passes over the training data.
    pub epochs: usize,
    /// Examples of one forward and backward pass.
    pub batch_size: usize,
    /// Passes whose gradients are summed before the optimizer steps.
    pub accumulation: usize,
    /// Whether layers are computed again in the backward pass, in place of keeping their
    /// activations: less memory for one more forward pass.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub checkpointing: bool,
    /// Whether the completions of a batch are put into one row without padding, in place of a
    /// padded row each. No text sees another: what is learnt is the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub packing: bool,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Share of the steps that the learning rate rises over.
    pub warmup: f64,
    /// Number of those steps, in place of a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
    /// What follows the warm-up.
    pub schedule: Decay,
    /// Largest global gradient norm; 0 for none.
    pub clip: f64,
    /// Evaluations on dev a pass over the data.
    pub evaluations_per_epoch: usize,
    /// Stop after this many evaluations without a better dev score and keep the best; 0 for never.
    pub early_stopping: usize,
    /// Examples of an evaluation batch.
    pub eval_batch_size: usize,
    /// Longest time a trial may take, in minutes; 0 for no limit.
    pub timeout_minutes: f64,
    /// Factors on the learning rate, by names of parameters (see [`groups`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, f64>,
    /// Factor on the learning rate for every layer further down: the head has the full rate, the
    /// highest layer this share of it, the embeddings the smallest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    /// Names of parameters without weight decay: `["biases", "norms"]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_decay: Vec<String>,
    /// Parameters that are frozen in some epochs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<Freeze>,
    /// Small changes of the embedded text that training is to withstand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<Adversarial>,
    /// Lower layers that go without the method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_drop: Option<AdapterDrop>,
    /// How likely each layer goes without the method in a pass of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stochastic_depth: Option<f64>,
    /// How likely each value that the method adds in a layer is left out while training, whatever
    /// the method and beside a dropout of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_dropout: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: OneOrMany::One(1e-3),
            epochs: 3,
            batch_size: 16,
            accumulation: 1,
            checkpointing: false,
            packing: false,
            weight_decay: 0.01,
            warmup: 0.06,
            schedule: Decay::Linear,
            clip: 1.0,
            evaluations_per_epoch: 1,
            early_stopping: 0,
            eval_batch_size: 64,
            timeout_minutes: 0.0,
            warmup_steps: None,
            rates: BTreeMap::new(),
            layer_decay: None,
            no_decay: Vec::new(),
            freeze: Vec::new(),
            adversarial: None,
            adapter_drop: None,
            stochastic_depth: None,
            adapter_dropout: None,
        }
    }
}

impl TrainConfig {
    /// The number of steps, of so many, that the learning rate rises over.
    pub fn warmup_of(&self, steps: usize) -> usize {
        let share = (self.warmup * steps as f64).ceil() as usize;
        self.warmup_steps.unwrap_or(share)
    }

    fn check_warmup(&self) -> Result<(), String> {
        let found = self.warmup;
        if !(0.0..1.0).contains(&found) {
            return Err(format!(
                "`train.warmup` is {found}, expected a share from 0 to below 1"
            ));
        }
        if self.warmup_steps.is_some() && found != Self::default().warmup {
            return Err("`train.warmup` and `train.warmup_steps` say the same; remove one".into());
        }
        Ok(())
    }
}

/// A value, or several to try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, or a list of them")]
pub enum OneOrMany<T> {
    /// One value.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    /// All of them.
    pub fn values(&self) -> Vec<T> {
        match self {
            OneOrMany::One(value) => vec![value.clone()],
            OneOrMany::Many(values) => values.clone(),
        }
    }
}

/// A row of the comparison: the harness's keys; every other key is the method's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MethodRow {
    /// The method's `kind`.
    pub kind: String,
    /// Name for plots; the method's own where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How the frozen weights are stored: `f32`, `nf4`, `fp4` or `int8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// Learning rates in place of the study's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<OneOrMany<f64>>,
    /// Epochs in place of the study's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// The method's keys. The key of its size (`rank`, `bottleneck`) may hold a list.
    #[serde(flatten)]
    pub config: serde_json::Map<String, serde_json::Value>,
}

impl MethodRow {
    /// The row that this TOML describes, as a command line takes it.
    ///
    /// # Errors
    /// If it is not valid, or a key has a value it cannot have.
    pub fn inline(text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|error| {
            let reason = plain::toml::<Self>(&error, text);
            anyhow::anyhow!("`--method` is not valid TOML: {reason}")
        })
    }

    /// Whether the harness's keys make sense.
    ///
    /// # Errors
    /// Names the key, what was found and what is expected.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.epochs == Some(0) {
            return Err("`epochs` is 0, expected at least 1".into());
        }
        let rates = self.learning_rate.as_ref();
        rates.map_or(Ok(()), |rates| check_rates("learning_rate", rates))
    }
}

impl Study {
    /// Reads a study file, puts variables in and makes paths relative to the file.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, holds an unknown key, or uses a variable without value.
    pub fn load(file: &Path, variables: &BTreeMap<String, String>) -> Result<Self, BenchError> {
        let error = |reason: String| BenchError::Study {
            file: file.into(),
            reason,
        };
        let text = std::fs::read_to_string(file).map_err(|e| error(e.to_string()))?;
        let mut study: Study =
            toml::from_str(&text).map_err(|e| error(plain::toml::<Self>(&e, &text)))?;
        study.check().map_err(error)?;
        study.task.check().map_err(error)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let resolve = |path: &mut String| -> Result<(), BenchError> {
            let filled = fill(path, variables)?;
            *path = folder.join(filled).to_string_lossy().into_owned();
            Ok(())
        };
        let model = fill(&study.model, variables)?;
        let of_the_hub = RepoId::of(&model).map_err(|e| error(e.to_string()))?;
        match of_the_hub {
            Some(id) => study.model = id.to_string(),
            None => resolve(&mut study.model)?,
        }
        for row in &mut study.method {
            crate::parts::each_folder(&mut row.config, &mut |folder| match RepoId::of(Path::new(
                folder,
            )) {
                Ok(None) => resolve(folder),
                Ok(Some(_)) => Ok(()),
                Err(e) => Err(error(e.to_string())),
            })?;
        }
        for task in study.task.members_mut() {
            for path in task.paths_mut() {
                resolve(path)?;
            }
        }
        Ok(study)
    }

    /// Downloads a model of the hub and fixes its commit, for every trial to use the same one.
    ///
    /// # Errors
    /// If the hub does not give it.
    pub fn pin(&mut self, quiet: bool) -> anyhow::Result<()> {
        let pinned = crate::source::pinned(Path::new(&self.model), quiet)?;
        self.model = pinned.to_string_lossy().into_owned();
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let in_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.starts_with('.') || self.name.is_empty() || !self.name.chars().all(in_name) {
            return Err(format!(
                "`name` is `{}`, expected letters, digits, `-`, `_` and `.`: it names a folder",
                self.name
            ));
        }
        let train = &self.train;
        let positive = [
            ("train.epochs", train.epochs),
            ("train.batch_size", train.batch_size),
            ("train.accumulation", train.accumulation),
            ("train.evaluations_per_epoch", train.evaluations_per_epoch),
            ("train.eval_batch_size", train.eval_batch_size),
            ("seeds", self.seeds.len()),
            ("method", self.method.len()),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("`{key}` is 0 or empty, expected at least 1"));
        }
        train.check_warmup()?;
        groups::check(train)?;
        if train.packing && !matches!(self.task, Task::Completion { .. }) {
            return Err(
                "`train.packing` is true, expected false: only the texts of completion tasks are \
                 packed"
                    .into(),
            );
        }
        let alone = [
            ("checkpointing", train.checkpointing),
            ("packing", train.packing),
        ];
        if let Some((key, _)) = alone
            .iter()
            .find(|(_, on)| *on && train.adversarial.is_some())
        {
            return Err(format!(
                "`train.{key}` does not go with `train.adversarial`; leave one of them out"
            ));
        }
        self.check_counts()?;
        train.adversarial.map_or(Ok(()), |it| it.check())?;
        layer_drop::check(train)?;
        check_rates("train.learning_rate", &train.learning_rate)
    }

    /// Refuses what is said of seeds or epochs that the study does not have.
    fn check_counts(&self) -> Result<(), String> {
        let (seeds, tuning) = (self.seeds.len(), self.tuning_seeds.unwrap_or(1));
        if !(1..=seeds).contains(&tuning) {
            return Err(format!(
                "`tuning_seeds` is {tuning}, expected at least 1 and at most the {seeds} of `seeds`"
            ));
        }
        let epochs = self.method.iter().map(|row| row.epochs);
        let epochs = epochs.map(|own| own.unwrap_or(self.train.epochs));
        let most = epochs.max().unwrap_or(self.train.epochs);
        let late = |freeze: &&Freeze| freeze.from_epoch >= most;
        match self.train.freeze.iter().find(late) {
            Some(Freeze { from_epoch, .. }) => Err(format!(
                "`from_epoch` of `train.freeze` is {from_epoch}, expected less than the {most} epochs \
                 of the run: they are counted from 0"
            )),
            None => Ok(()),
        }
    }
}

/// Refuses learning rates that are none.
fn check_rates(key: &str, rates: &OneOrMany<f64>) -> Result<(), String> {
    let rates = rates.values();
    if rates.is_empty() {
        return Err(format!(
            "`{key}` is an empty list, expected at least one rate"
        ));
    }
    let is_rate = |rate: &f64| *rate > 0.0 && rate.is_finite();
    match rates.iter().find(|rate| !is_rate(rate)) {
        Some(rate) => Err(format!("`{key}` is {rate}, expected a number above 0")),
        None => Ok(()),
    }
}

/// Replaces `${NAME}` by the variable's value, from the command line or the environment.
fn fill(text: &str, variables: &BTreeMap<String, String>) -> Result<PathBuf, BenchError> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        let value = variables
            .get(name)
            .cloned()
            .or_else(|| std::env::var(name).ok());
        filled += before;
        filled += &value.ok_or_else(|| BenchError::Variable { name: name.into() })?;
        rest = after;
    }
    Ok(PathBuf::from(filled + rest))
}

#[cfg(test)]
mod tests;
