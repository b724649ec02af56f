//! One finished trial as data: self-describing, append-only, enough to rebuild every table and plot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the record format; a reader refuses a newer one.
pub const SCHEMA: u32 = 1;

/// Everything known about one trial once it has ended, however it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Format version, [`SCHEMA`] when written.
    pub schema: u32,
    /// What was run.
    pub trial: TrialInfo,
    /// How it ended.
    pub status: Status,
    /// Where it was run.
    pub environment: Environment,
    /// What it was run on: name of a split or file to its fingerprint.
    pub data: BTreeMap<String, DataInfo>,
    /// Parameters and their bytes.
    pub budget: Budget,
    /// Wall-clock times; step times exclude evaluation and loading.
    pub time: TimeInfo,
    /// Memory, broken down and at its peak.
    pub memory: MemoryInfo,
    /// The learning curve: one point per logged training step or evaluation, up to where training
    /// ended.
    pub curve: Vec<CurvePoint>,
    /// Final scores: split (`dev`, `test`) to metric to value. Losses and perplexities (up to e^300)
    /// as they are, every other score as a fraction of one.
    pub scores: BTreeMap<String, BTreeMap<String, f64>>,
    /// One row per test example, in the order of the test file, for paired comparisons.
    pub predictions: Vec<Prediction>,
    /// Sample generations before and after training (empty for classification).
    pub samples: Vec<Sample>,
    /// What a reader should know: inputs that stand in two splits, texts that were cut, settings
    /// without effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The trial as the study resolved it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialInfo {
    /// Readable name, unique within the study: `lora-r8--lr1e-3--s1`.
    pub id: String,
    /// Hash of the resolved configuration; a trial with a record of this hash is not run again.
    pub hash: String,
    /// The study's name.
    pub study: String,
    /// The question the study asks.
    pub question: String,
    /// Label of the method row: `LoRA r8`. Trials that differ only by learning rate or seed share it.
    pub label: String,
    /// Family of the row, shared by its sizes: `LoRA`.
    pub family: String,
    /// Registry kind of the method: `lora`.
    pub kind: String,
    /// What is swept, `rank` or `bottleneck`, and its value, if the method has a size.
    pub size: Option<Size>,
    /// Storage of the frozen weights: `f32`, `nf4`, ...
    pub storage: String,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed of initialisation, data order and dropout.
    pub seed: u64,
    /// Name of the metric the study ranks by, for example `accuracy`.
    pub metric: String,
    /// Whether a larger value of `metric` is better.
    pub higher_is_better: bool,
    /// The whole resolved configuration.
    pub config: serde_json::Value,
}

/// A swept size of a method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// `rank`, `bottleneck`, ...
    pub name: String,
    /// Its value.
    pub value: u64,
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Status {
    /// It trained and was scored.
    Ok,
    /// The loss stopped being finite, in training or on dev, or a final score is no number.
    Diverged {
        /// Where and how.
        reason: String,
    },
    /// It was killed for want of memory.
    Oom {
        /// What is known of it.
        reason: String,
    },
    /// It ended with an error.
    Failed {
        /// The error.
        reason: String,
    },
    /// It ran past its time limit.
    Timeout {
        /// The limit.
        reason: String,
    },
}

/// Where a trial was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of the program.
    pub version: String,
    /// Commit of the source tree, with `-dirty` where it had local changes; empty if unknown.
    pub commit: String,
    /// Start of the SHA-256 of the program's file, in hex; empty in records of before it was kept.
    #[serde(default)]
    pub program: String,
    /// Version of Burn.
    pub burn: String,
    /// Version of the compiler.
    pub rustc: String,
    /// Operating system and architecture.
    pub os: String,
    /// Name of the processor.
    pub cpu: String,
    /// Device the trial asked for: `cpu`, `ndarray`, `cuda:0`.
    pub device: String,
    /// Threads used.
    pub threads: usize,
    /// Start of the trial, RFC 3339 in UTC.
    pub started: String,
}

/// Fingerprint of one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataInfo {
    /// SHA-256 of the file or the generated text, in hex.
    pub sha256: String,
    /// Number of examples used.
    pub examples: usize,
}

/// Parameters by what they are, and their size in bytes as saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Parameters of the base model, its original head included, nothing added.
    pub base: u64,
    /// Parameters that were trained, the task head included.
    pub trainable: u64,
    /// Trained parameters of the task head alone.
    pub head: u64,
    /// Bytes of the frozen base as stored for training.
    pub base_bytes: u64,
    /// Bytes of the trained parameters, which are saved after training; layers that are never
    /// trained with the method (`adapter_drop` of kind `specialized`) are not counted, here and in
    /// `trainable`.
    pub adapter_bytes: u64,
}

/// Wall-clock times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeInfo {
    /// Seconds in training steps alone (forward, backward, optimizer).
    pub train_s: f64,
    /// Seconds in the evaluation on dev and test after the last step, generation included. Evaluations
    /// on dev along the way are in `total_s` alone.
    pub eval_s: f64,
    /// Seconds in which the method looked at training data before the first step; none of them are
    /// in `train_s`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub look_s: f64,
    /// Seconds from start to record.
    pub total_s: f64,
    /// Optimizer steps taken.
    pub steps: u64,
    /// Tokens trained on, padding not counted.
    pub tokens: u64,
    /// `tokens / train_s`.
    pub tokens_per_s: f64,
    /// Median time of a step in milliseconds.
    pub step_ms_median: f64,
    /// 95th percentile of the step time in milliseconds.
    pub step_ms_p95: f64,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// Weights of the base as stored.
    pub base: u64,
    /// Weights that are trained.
    pub adapter: u64,
    /// Gradients of the trained weights.
    pub gradients: u64,
    /// State of the optimizer.
    pub optimizer: u64,
    /// Peak predicted before the run.
    pub predicted_peak: u64,
    /// Largest resident set of the process that ran the trial while it trained: reading the model,
    /// evaluation and generation are left out, where the system lets a process restart its peak
    /// (Linux). What a GPU holds is not measured. Records of before 2026-12 include evaluations.
    pub measured_peak: u64,
}

/// One point of the learning curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Optimizer steps taken so far.
    pub step: u64,
    /// Fraction of the training data seen, in epochs.
    pub epoch: f64,
    /// Mean training loss since the last point, absent where nothing was trained since.
    pub train_loss: Option<f64>,
    /// Learning rate at this step.
    pub learning_rate: f64,
    /// Scores on dev, where the model was evaluated at this step.
    pub dev: Option<BTreeMap<String, f64>>,
}

/// What the model answered for one test example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The answer.
    pub predicted: String,
    /// The reference.
    pub expected: String,
    /// The example's own score on the study's metric (1 or 0 for accuracy and exact match); where a
    /// study mixes tasks of different size, weighted so that every task counts alike.
    pub score: f64,
}

/// One prompt and what the model made of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The prompt.
    pub prompt: String,
    /// The reference answer.
    pub expected: String,
    /// Greedy answer of the untouched base.
    pub before: String,
    /// Greedy answer after training.
    pub after: String,
}

impl Record {
    /// The score of the study's own metric on `split`, if it was measured and is finite.
    #[must_use]
    pub fn score(&self, split: &str) -> Option<f64> {
        let value = *self.scores.get(split)?.get(&self.trial.metric)?;
        value.is_finite().then_some(value)
    }

    /// The score of the study's own metric on `split` of one task of a mixture.
    #[must_use]
    pub fn task_score(&self, split: &str, task: &str) -> Option<f64> {
        let name = format!("{}/{task}", self.trial.metric);
        let value = *self.scores.get(split)?.get(&name)?;
        value.is_finite().then_some(value)
    }

    /// The tasks of a mixture that were scored on test by the study's own metric.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &str> {
        let names = self.scores.get("test").into_iter().flat_map(BTreeMap::keys);
        names.filter_map(|name| name.strip_prefix(&self.trial.metric)?.strip_prefix('/'))
    }
}

impl Status {
    /// Whether the trial trained and was scored.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok)
    }

    /// The name by which the status is stored: `ok`, `diverged`, `oom`, `failed`, `timeout`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Diverged { .. } => "diverged",
            Self::Oom { .. } => "oom",
            Self::Failed { .. } => "failed",
            Self::Timeout { .. } => "timeout",
        }
    }

    /// Why the trial did not end well; empty for [`Status::Ok`].
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Ok => "",
            Self::Diverged { reason }
            | Self::Oom { reason }
            | Self::Failed { reason }
            | Self::Timeout { reason } => reason,
        }
    }
}
