//! A task's rows as files and scenarios have them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use models::Loaded;
use peft_core::Init;
use tasks::read::{Table, parse, read};
use tasks::scenario::Scenario;

use crate::heads::Heads;
use crate::source;
use crate::study::{DataSource, Task};

/// The rows of a task, or of every task of a mixture, before they meet a tokenizer.
pub struct Tables(pub(super) Vec<Rows>);

/// The rows of one task.
pub(super) struct Rows {
    pub(super) splits: [(&'static str, Table); 3],
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
    /// The base model of the task, with outputs for the classes of every task.
    ///
    /// # Errors
    /// If the labels make no classification, or the model cannot be loaded.
    pub fn base(&self, task: &Task, folder: &Path, init: &mut Init) -> Result<Loaded> {
        let classes = self.heads(task)?.outputs();
        source::load(folder, classes, init)
            .with_context(|| format!("cannot load the base model `{}`", folder.display()))
    }

    /// SHA-256 of each split of the task they were read for.
    pub fn fingerprints(&self, task: &Task) -> BTreeMap<String, String> {
        let members = task.members().into_iter().zip(&self.0);
        let splits = members.flat_map(|((task, _), rows)| {
            let splits = rows.splits.iter();
            splits.map(move |(split, table)| (told_apart(task, split), table.sha256.clone()))
        });
        splits.collect()
    }

    /// The classes of the task they were read for, or of every task of a mixture; none for
    /// completions.
    ///
    /// # Errors
    /// If the labels make no classification.
    pub fn heads(&self, task: &Task) -> Result<Heads> {
        let mut heads = Heads::default();
        for ((name, task), rows) in task.members().into_iter().zip(&self.0) {
            let labels = rows.labels(task);
            let Some(name) = name else {
                return Ok(Heads::new(None, labels?));
            };
            let labels = labels.with_context(|| format!("task `{name}`"))?;
            heads.join(Heads::new(Some(name), labels));
        }
        Ok(heads)
    }
}

/// A name that says which task of a mixture something is of.
pub(super) fn told_apart(task: Option<&str>, name: &str) -> String {
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
