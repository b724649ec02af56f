//! A task's examples, tokenised.

mod encode;
mod mixture;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use report::record::DataInfo;
use tasks::chat_template::ChatTemplate;
use tasks::layout::Layout;
use tasks::read::{Table, parse, read, sha256};
use tasks::scenario::Scenario;
use tasks::split::{Example as _, Splits, subsample};
use tokenizers::Tokenizer;

use crate::source;
use crate::study::{DataSource, Limit, Task};

use encode::{Encoded, encode};

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
    /// The number of its task; 0 where there is one.
    pub task: usize,
}

/// What is to be learnt of an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The tokens from this index on, which are also the answer.
    Completion(usize),
    /// Several parts: the assistant's turns of a chat, or the prompt as well.
    Parts {
        /// The parts, in order; none starts at 0.
        learned: Vec<Range<usize>>,
        /// Where the (last) answer starts.
        answer: usize,
    },
    /// A class.
    Class(usize),
}

/// A task's data.
pub struct Data {
    /// The three splits.
    pub splits: Splits<Example>,
    /// Names of the classes; empty for completions.
    pub labels: Vec<String>,
    /// The token that ends an answer.
    pub eos: Option<u32>,
    /// The text that ends an answer, where it is no token of its own.
    pub stop: Option<String>,
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

/// The rows of a task, or of every task of a mixture, before they meet a tokenizer.
pub struct Tables(Vec<Rows>);

/// The rows of one task.
struct Rows {
    splits: [(&'static str, Table); 3],
}

/// Reads or generates the task's rows.
///
/// # Errors
/// If a file cannot be read; the error names file and line.
pub fn tables(task: &Task) -> Result<Tables> {
    let rows = task.members().into_iter().map(|(_, task)| rows(task));
    Ok(Tables(rows.collect::<Result<_>>()?))
}

fn rows(task: &Task) -> Result<Rows> {
    let names = ["train", "dev", "test"];
    let tables = match task.data() {
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
    Ok(Rows { splits })
}

impl Tables {
    /// SHA-256 of each split of the task they were read for.
    pub fn fingerprints(&self, task: &Task) -> BTreeMap<String, String> {
        let members = task.members().into_iter().zip(&self.0);
        let splits = members.flat_map(|((task, _), rows)| {
            let splits = rows.splits.iter();
            splits.map(move |(split, table)| (told_apart(task, split), table.sha256.clone()))
        });
        splits.collect()
    }

    /// The class names of the task they were read for, empty for completions.
    ///
    /// # Errors
    /// If the labels make no classification, or those of two tasks of a mixture differ.
    pub fn labels(&self, task: &Task) -> Result<Vec<String>> {
        let members = task.members().into_iter().zip(&self.0);
        let labels = members.map(|((name, task), rows)| Ok((name, rows.labels(task)?)));
        mixture::same_labels(labels.collect::<Result<Vec<_>>>()?)
    }
}

/// A name that says which task of a mixture something is of.
fn told_apart(task: Option<&str>, name: &str) -> String {
    task.map_or_else(|| name.into(), |task| format!("{task}/{name}"))
}

impl Rows {
    fn labels(&self, task: &Task) -> Result<Vec<String>> {
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

fn assemble(encoded: Encoded, tables: &Rows, limit: &Limit) -> Data {
    // The same draw for every trial: seeds vary training, not the question.
    const DRAW: u64 = 0;
    let limits = [limit.train, limit.dev, limit.test];
    let mut parts = encoded
        .examples
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
    let repeated = (!twice.is_empty()).then(|| {
        let places = [
            (twice.dev_in_train, "of dev also stand in train"),
            (twice.test_in_train, "of test also stand in train"),
            (twice.test_in_dev, "of test also stand in dev"),
        ];
        let said = places.iter().filter(|(count, _)| *count > 0);
        let said: Vec<_> = said
            .map(|(count, place)| format!("{count} inputs {place}"))
            .collect();
        said.join(", ")
    });
    Data {
        splits,
        labels: encoded.labels,
        eos: encoded.eos,
        stop: encoded.stop,
        info,
        warnings: encoded.warnings.into_iter().chain(repeated).collect(),
    }
}

/// The template that writes a task's chats, if they are chats: the study's, else the model's.
fn chat_template(task: &Task, folder: &Path) -> Result<Option<ChatTemplate>> {
    let Task::Completion {
        format,
        chat_template,
        ..
    } = task
    else {
        return Ok(None);
    };
    let chosen = format.filter(|format| format.is_chat());
    let template = chosen.map(|_: Layout| match chat_template {
        Some(choice) => ChatTemplate::chosen(choice, folder),
        None => ChatTemplate::of_folder(folder),
    });
    Ok(template.transpose()?)
}

/// SHA-256 of the template that writes a task's chats, as that decides what is learned.
///
/// # Errors
/// If the task's rows are chats and there is no usable template.
pub fn chat_fingerprint(task: &Task, folder: &Path) -> Result<Option<String>> {
    let mut hashes = Vec::new();
    for (_, task) in task.members() {
        let template = chat_template(task, folder)?;
        hashes.push(template.map(|template| sha256(template.source().as_bytes())));
    }
    Ok(match hashes.len() {
        1 => hashes.remove(0),
        _ if hashes.iter().all(Option::is_none) => None,
        _ => Some(sha256(format!("{hashes:?}").as_bytes())),
    })
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
/// If the data or the model cannot be read, or a row is not what the task asks for; the error
/// names file and line.
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
    let mut parts = Vec::new();
    for ((name, task), rows) in task.members().into_iter().zip(&tables.0) {
        let chat = chat_template(task, folder)?;
        let eos = source::eos(&loaded.config, &tokenizer);
        let encoded = encode(rows, task, &loaded.model, eos, &tokenizer, chat);
        let encoded = match name {
            Some(name) => encoded.with_context(|| format!("task `{name}`"))?,
            None => encoded?,
        };
        parts.push((name, assemble(encoded, rows, task.limit())));
    }
    let data = mixture::joined(parts)?;
    if let Some(example) = data.splits.train.iter().find(|e| e.ids.is_empty()) {
        anyhow::bail!("the example `{}` has no tokens", example.input());
    }
    Ok(Prepared {
        loaded,
        data,
        tokenizer,
    })
}
