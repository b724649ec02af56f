//! Study files: the question, and what differs from the defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tasks::metric::Metric;
use tasks::read::ReadOptions;
use tasks::scenario::ScenarioConfig;

use crate::error::{BenchError, with_suggestion};
use crate::hub::RepoId;
use crate::schedule::Decay;

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
    /// Number of test prompts answered before and after training, for the report.
    #[serde(default)]
    pub samples: usize,
    /// The methods compared, each with its sizes and learning rates.
    pub method: Vec<MethodRow>,
}

fn default_seeds() -> Vec<u64> {
    vec![1, 2, 3]
}

/// What the model is to learn.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// Continue a prompt; the loss is on the completion only.
    Completion {
        /// Where the rows come from.
        data: DataSource,
        /// Template of the prompt over a row's fields.
        #[serde(default = "default_prompt")]
        prompt: String,
        /// Template of the completion.
        #[serde(default = "default_completion")]
        completion: String,
        /// Most tokens of an example.
        max_length: usize,
        /// Most tokens of a generated answer.
        max_new_tokens: usize,
        /// What the study ranks by.
        metric: Metric,
        /// What to do with completions that do not fit.
        #[serde(default)]
        overlong: tasks::lm::Overlong,
        /// Most examples of each split.
        #[serde(default)]
        limit: Limit,
    },
    /// Put a text into one of several classes.
    Classification {
        /// Where the rows come from.
        data: DataSource,
        /// Template of the text over a row's fields.
        text: String,
        /// Template of a second text, for pairs.
        #[serde(default)]
        pair: Option<String>,
        /// Field of the label.
        label: String,
        /// The labels in the order of their classes; collected from train where not given.
        #[serde(default)]
        labels: Option<Vec<String>>,
        /// Most tokens of an example.
        max_length: usize,
        /// What the study ranks by.
        metric: Metric,
        /// Most examples of each split.
        #[serde(default)]
        limit: Limit,
    },
}

fn default_prompt() -> String {
    "{{ prompt }}".into()
}
fn default_completion() -> String {
    "{{ completion }}".into()
}

impl Task {
    /// What the study ranks by.
    pub fn metric(&self) -> Metric {
        match self {
            Task::Completion { metric, .. } | Task::Classification { metric, .. } => *metric,
        }
    }

    fn data_mut(&mut self) -> &mut DataSource {
        match self {
            Task::Completion { data, .. } | Task::Classification { data, .. } => data,
        }
    }
}

/// Most examples of each split; all where not given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Of train.
    pub train: Option<usize>,
    /// Of dev.
    pub dev: Option<usize>,
    /// Of test.
    pub test: Option<usize>,
}

/// Where rows come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DataSource {
    /// The generated video-recommendation scenario.
    Scenario(ScenarioSource),
    /// Files, relative to the study file; may hold `${VARIABLES}`.
    Files(Files),
}

/// A generated scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioSource {
    /// Seed of the scenario.
    pub scenario: u64,
    /// Its sizes.
    #[serde(default)]
    pub sizes: ScenarioConfig,
}

/// One file a split.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// To learn from.
    pub train: String,
    /// To choose by.
    pub dev: String,
    /// To report on.
    pub test: String,
    /// How to read them, where names and first lines do not tell.
    #[serde(default)]
    pub read: ReadOptions,
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
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Share of the steps that the learning rate rises over.
    pub warmup: f64,
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
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: OneOrMany::One(1e-3),
            epochs: 3,
            batch_size: 16,
            accumulation: 1,
            weight_decay: 0.01,
            warmup: 0.06,
            schedule: Decay::Linear,
            clip: 1.0,
            evaluations_per_epoch: 1,
            early_stopping: 0,
            eval_batch_size: 64,
            timeout_minutes: 0.0,
        }
    }
}

/// A value, or several to try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
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
    pub config: BTreeMap<String, serde_json::Value>,
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
            toml::from_str(&text).map_err(|e| error(with_suggestion(&e.to_string())))?;
        study.check().map_err(error)?;
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
        if let DataSource::Files(files) = study.task.data_mut() {
            for path in [&mut files.train, &mut files.dev, &mut files.test] {
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
        if !(0.0..1.0).contains(&train.warmup) {
            let found = train.warmup;
            return Err(format!(
                "`train.warmup` is {found}, expected a share from 0 to below 1"
            ));
        }
        let rates = self.method.iter().filter_map(|m| m.learning_rate.as_ref());
        let rates = rates
            .chain([&train.learning_rate])
            .flat_map(OneOrMany::values);
        match rates
            .into_iter()
            .find(|rate| !(*rate > 0.0 && rate.is_finite()))
        {
            Some(rate) => Err(format!(
                "`learning_rate` is {rate}, expected a number above 0"
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
mod tests {
    use super::*;

    const STUDY: &str = r#"
        name = "s"
        question = "?"
        model = "${BASE}/model"
        [task]
        kind = "classification"
        data = { train = "a.tsv", dev = "b.tsv", test = "c.tsv" }
        text = "{{ sentence }}"
        label = "label"
        max_length = 48
        metric = "accuracy"
        [[method]]
        kind = "lora"
        rank = [1, 8]
    "#;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Study, BenchError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("study.toml");
        std::fs::write(&file, text).unwrap();
        let pairs = variables
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()));
        Study::load(&file, &pairs.collect())
    }

    #[test]
    fn variables_are_filled_in_and_paths_start_at_the_file() {
        let study = load(STUDY, &[("BASE", "/models")]).unwrap();
        assert_eq!(study.model, "/models/model");
        let Task::Classification {
            data: DataSource::Files(files),
            ..
        } = study.task
        else {
            panic!()
        };
        assert!(files.train.ends_with("a.tsv") && files.train.len() > 5);
    }

    #[test]
    fn a_name_of_the_hub_stays_one_and_is_checked() {
        let study = load(STUDY, &[("BASE", "hf://org")]).unwrap();
        assert_eq!(study.model, "hf://org/model@main");
        let error = load(STUDY, &[("BASE", "hf://..")]).unwrap_err().to_string();
        assert!(
            error.contains("study.toml") && error.contains("no name of the hub"),
            "{error}"
        );
    }

    #[test]
    fn a_variable_without_value_is_an_error_that_says_how_to_give_it() {
        let error = load(&STUDY.replace("BASE", "NO_SUCH_VAR"), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("--var NO_SUCH_VAR="), "{error}");
    }

    #[test]
    fn a_misspelt_key_is_an_error_with_a_suggestion_and_a_line() {
        let text = STUDY.replace("question", "qestion");
        let error = load(&text, &[("BASE", "/m")]).unwrap_err().to_string();
        assert!(
            error.contains("did you mean `question`") && error.contains("line 3"),
            "{error}"
        );
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let text = STUDY.replace("[[method]]", "[train]\nepochs = 0\n[[method]]");
        let error = load(&text, &[("BASE", "/m")]).unwrap_err().to_string();
        assert!(error.contains("train.epochs"), "{error}");
    }
}
