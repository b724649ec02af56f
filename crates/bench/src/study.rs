//! Study files: the question, and what differs from the defaults.

mod mixture;
mod source;
mod task;
mod train;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::groups::Freeze;
use crate::hub::RepoId;
use crate::plain;

pub use mixture::Mixture;
pub use source::{DataSource, Files, Limit, ScenarioSource};
pub use task::Task;
pub use train::TrainConfig;
use train::check_rates;

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
        let counts = [("seeds", self.seeds.len()), ("method", self.method.len())];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(format!("`{key}` is empty, expected at least 1"));
        }
        self.check_counts()?;
        self.train.check()?;
        if self.train.packing && !matches!(self.task, Task::Completion { .. }) {
            return Err(
                "`train.packing` is true, expected false: only the texts of completion tasks are \
                 packed"
                    .into(),
            );
        }
        Ok(())
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
