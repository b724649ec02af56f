//! A task's rows as files and scenarios have them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use models::Loaded;
use peft_core::Init;
use tasks::read::{Table, parse, read};
use tasks::scenario::Scenario;

use crate::source;
use crate::study::{DataSource, Task};

/// The task's rows, before they meet a tokenizer.
pub struct Tables {
    pub(super) splits: [(&'static str, Table); 3],
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
    /// The base model of the task, with a head for its classes.
    ///
    /// # Errors
    /// If the labels make no classification, or the model cannot be loaded.
    pub fn base(&self, task: &Task, folder: &Path, init: &mut Init) -> Result<Loaded> {
        let labels = self.labels(task)?;
        let classes = (!labels.is_empty()).then_some(labels.len());
        source::load(folder, classes, init)
            .with_context(|| format!("cannot load the base model `{}`", folder.display()))
    }

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
