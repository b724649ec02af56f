//! A task's examples, tokenised.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use models::Model;
use report::record::DataInfo;
use serde_json::Value;
use tasks::classify::{ClassConfig, ClassEncoder};
use tasks::lm::{LmConfig, LmEncoder, LmExample};
use tasks::read::{Table, parse, read};
use tasks::scenario::Scenario;
use tasks::split::{Example as _, Splits, subsample};
use tokenizers::Tokenizer;

use crate::source;
use crate::study::{DataSource, Limit, Task};

/// One example as the model takes it.
#[derive(Clone, Debug)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// What is to be learnt of it.
    pub target: Target,
    /// The input as text.
    pub input: String,
    /// The reference answer as text.
    pub expected: String,
}

/// What is to be learnt of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The tokens from this index on.
    Completion(usize),
    /// A class.
    Class(usize),
}

/// A task's data.
pub struct Data {
    /// The three splits.
    pub splits: Splits<Example>,
    /// Names of the classes; empty for completions.
    pub labels: Vec<String>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// Fingerprints for the record.
    pub info: BTreeMap<String, DataInfo>,
    /// Things a reader of the results should know.
    pub warnings: Vec<String>,
}

impl tasks::split::Example for Example {
    fn input(&self) -> &str {
        &self.input
    }
}

/// The task's rows, before they meet a tokenizer.
pub struct Tables {
    splits: [(&'static str, Table); 3],
}

/// Reads or generates the task's rows.
///
/// # Errors
/// If a file cannot be read; the error names file and line.
pub fn tables(task: &Task) -> Result<Tables> {
    let (Task::Completion { data, .. } | Task::Classification { data, .. }) = task;
    let names = ["train", "dev", "test"];
    let tables = match data {
        DataSource::Scenario(source) => {
            let scenario = Scenario::generate(source.scenario, &source.sizes)?;
            let parts = [&scenario.train, &scenario.dev, &scenario.test];
            let table = |(name, rows): (&str, &Vec<tasks::scenario::LmRow>)| -> Result<Table> {
                let lines: Vec<_> = rows
                    .iter()
                    .map(serde_json::to_string)
                    .collect::<Result<_, _>>()?;
                let (path, text) = (format!("scenario/{name}.jsonl"), lines.join("\n"));
                Ok(parse(
                    Path::new(&path),
                    text.as_bytes(),
                    tasks::read::Format::Jsonl,
                    None,
                )?)
            };
            names
                .into_iter()
                .zip(parts)
                .map(table)
                .collect::<Result<Vec<_>>>()?
        }
        DataSource::Files(files) => [&files.train, &files.dev, &files.test]
            .into_iter()
            .map(|path| Ok(read(Path::new(path), &files.read)?))
            .collect::<Result<Vec<_>>>()?,
    };
    let mut tables = tables.into_iter();
    let splits = names.map(|name| (name, tables.next().expect("three splits")));
    Ok(Tables { splits })
}

impl Tables {
    /// SHA-256 of each split.
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        self.splits
            .iter()
            .map(|(name, table)| (name.to_string(), table.sha256.clone()))
            .collect()
    }

    /// The class names of a classification task, empty for completions.
    ///
    /// # Errors
    /// If the labels make no classification.
    pub fn labels(&self, task: &Task) -> Result<Vec<String>> {
        let Task::Classification { label, labels, .. } = task else {
            return Ok(Vec::new());
        };
        let train = &self.splits[0].1;
        Ok(match labels {
            Some(names) => tasks::classify::Labels::new(names.clone())?
                .names()
                .to_vec(),
            None => tasks::classify::Labels::collect(train, label)?
                .names()
                .to_vec(),
        })
    }
}

/// Tokenises the rows for a model.
///
/// # Errors
/// If a row lacks a field or has an unknown label, or the examples do not fit the model.
pub fn encode(
    tables: &Tables,
    task: &Task,
    model: &Model,
    config: &Value,
    tokenizer: &Tokenizer,
) -> Result<Data> {
    let (examples, labels, eos, max_length, limit) = match task {
        Task::Completion {
            prompt,
            completion,
            max_length,
            max_new_tokens,
            overlong,
            limit,
            ..
        } => {
            ensure!(
                model.is_causal(),
                "a completion task needs a language model"
            );
            let eos = source::eos(config, tokenizer)?;
            let lm = LmConfig {
                prompt: prompt.clone(),
                completion: completion.clone(),
                max_length: *max_length,
                overlong: *overlong,
            };
            let examples = completions(&LmEncoder::new(lm, tokenizer, eos)?, tables)?;
            (
                examples,
                Vec::new(),
                Some(eos),
                max_length + max_new_tokens,
                limit,
            )
        }
        Task::Classification {
            text,
            pair,
            label,
            labels,
            max_length,
            limit,
            ..
        } => {
            ensure!(
                !model.is_causal(),
                "a classification task needs a model of the BERT family"
            );
            let class = ClassConfig {
                text: text.clone(),
                pair: pair.clone(),
                label: label.clone(),
                labels: labels.clone(),
                max_length: *max_length,
            };
            let encoder = ClassEncoder::new(class, tokenizer, &tables.splits[0].1)?;
            let names = encoder.labels().names().to_vec();
            (classes(&encoder, tables)?, names, None, *max_length, limit)
        }
    };
    let limit_of_model = model.max_length();
    ensure!(
        max_length <= limit_of_model,
        "examples of up to {max_length} tokens do not fit the model's {limit_of_model} positions; \
         lower `max_length` (or `max_new_tokens`)"
    );
    Ok(assemble(examples, tables, labels, eos, limit))
}

fn completions(encoder: &LmEncoder, tables: &Tables) -> Result<Vec<Vec<Example>>> {
    let example = |e: LmExample| Example {
        target: Target::Completion(e.completion_start),
        ids: e.ids,
        input: e.prompt_text,
        expected: e.completion_text,
    };
    let split = |(_, table): &(_, Table)| {
        Ok(encoder
            .encode(table)?
            .examples
            .into_iter()
            .map(example)
            .collect())
    };
    tables.splits.iter().map(split).collect()
}

fn classes(encoder: &ClassEncoder, tables: &Tables) -> Result<Vec<Vec<Example>>> {
    let split = |(_, table): &(_, Table)| {
        let examples = encoder.encode(table)?.into_iter().map(|e| Example {
            target: Target::Class(e.label),
            expected: encoder.labels().names()[e.label].clone(),
            ids: e.ids,
            input: e.text,
        });
        Ok(examples.collect())
    };
    tables.splits.iter().map(split).collect()
}

fn assemble(
    examples: Vec<Vec<Example>>,
    tables: &Tables,
    labels: Vec<String>,
    eos: Option<u32>,
    limit: &Limit,
) -> Data {
    // The same draw for every trial: seeds vary training, not the question.
    const DRAW: u64 = 0;
    let limits = [limit.train, limit.dev, limit.test];
    let mut parts = examples
        .into_iter()
        .zip(limits)
        .map(|(e, limit)| subsample(e, limit, DRAW));
    let mut next = || parts.next().unwrap_or_default();
    let splits = Splits {
        train: next(),
        dev: next(),
        test: next(),
    };
    let sizes = [splits.train.len(), splits.dev.len(), splits.test.len()];
    let info = tables
        .splits
        .iter()
        .zip(sizes)
        .map(|((name, table), examples)| {
            (
                name.to_string(),
                DataInfo {
                    sha256: table.sha256.clone(),
                    examples,
                },
            )
        });
    let info = info.collect();
    let twice = splits.duplicates();
    let warnings = (!twice.is_empty()).then(|| {
        format!(
            "{} inputs of dev and {} of test also stand in train, {} of test in dev",
            twice.dev_in_train, twice.test_in_train, twice.test_in_dev
        )
    });
    Data {
        splits,
        labels,
        eos,
        info,
        warnings: warnings.into_iter().collect(),
    }
}

/// Everything a trial needs of its task.
pub struct Prepared {
    /// The base model.
    pub loaded: models::Loaded,
    /// The examples.
    pub data: Data,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
}

/// Everything a trial needs of its task, read from the model's folder and the data.
///
/// # Errors
/// As [`tables`] and [`encode`].
pub fn prepare(
    task: &Task,
    folder: &Path,
    seed: u64,
    device: &burn::tensor::Device,
) -> Result<Prepared> {
    let tables = tables(task)?;
    let labels = tables.labels(task)?;
    let classes = (!labels.is_empty()).then_some(labels.len());
    let mut init = peft_core::Init::new(seed, device);
    let loaded = source::load(folder, classes, &mut init)
        .with_context(|| format!("cannot load the base model `{}`", folder.display()))?;
    let tokenizer = source::tokenizer(folder, &loaded.model)?;
    let data = encode(&tables, task, &loaded.model, &loaded.config, &tokenizer)?;
    if let Some(example) = data.splits.train.iter().find(|e| e.ids.is_empty()) {
        anyhow::bail!("the example `{}` has no tokens", example.input());
    }
    Ok(Prepared {
        loaded,
        data,
        tokenizer,
    })
}
