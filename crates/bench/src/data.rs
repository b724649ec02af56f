//! A task's examples, tokenised.

mod encode;
mod mixture;
mod tables;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use models::Loaded;
use report::record::DataInfo;
use tasks::chat_template::ChatTemplate;
use tasks::layout::Layout;
use tasks::read::sha256;
use tasks::split::{Example as _, Splits, subsample};
use tokenizers::Tokenizer;

use crate::heads::Heads;
use crate::source;
use crate::study::{Limit, Task};

use encode::{Encoded, encode};
use tables::{Rows, told_apart};
pub use tables::{Tables, tables};

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
    Class {
        /// The output of the classifier that is its.
        output: usize,
        /// The outputs that are of the example's task.
        of: Range<usize>,
    },
}

impl Example {
    /// The tokens before the (last) answer; all of them where a class is the answer.
    pub fn prompt(&self) -> &[u32] {
        match self.target {
            Target::Completion(start) | Target::Parts { answer: start, .. } => &self.ids[..start],
            Target::Class { .. } => &self.ids,
        }
    }

    /// Makes it an example of the task of this number, whose outputs are among these.
    fn become_task(&mut self, number: usize, heads: &Heads) {
        self.task = number;
        if let Target::Class { output, of } = &mut self.target {
            let class = *output - of.start;
            *of = heads.range(number);
            *output = of.start + class;
        }
    }
}

/// A task's data.
pub struct Data {
    /// The three splits.
    pub splits: Splits<Example>,
    /// The classes, of every task of a mixture; none for completions.
    pub heads: Heads,
    /// The token that ends an answer.
    pub eos: Option<u32>,
    /// The text that ends an answer, where it is no token of its own.
    pub stop: Option<String>,
    /// Fingerprints for the record.
    pub info: BTreeMap<String, DataInfo>,
    /// Things a reader of the results should know.
    pub warnings: Vec<String>,
}

impl Data {
    /// Tokens of the longest example to learn from.
    pub fn longest(&self) -> usize {
        let lengths = self.splits.train.iter().map(|example| example.ids.len());
        lengths.max().unwrap_or(0)
    }

    /// Refuses examples and answers that do not fit the positions of a model, `virtual_tokens` of
    /// which a method takes.
    ///
    /// # Errors
    /// If the longest does not fit.
    pub fn check_positions(
        &self,
        task: &Task,
        virtual_tokens: usize,
        positions: usize,
    ) -> Result<()> {
        let splits = &self.splits;
        let examples = || splits.train.iter().chain(&splits.dev).chain(&splits.test);
        let longest = examples().map(|e| e.ids.len()).max().unwrap_or(0);
        ensure!(
            longest + virtual_tokens <= positions,
            "examples of up to {longest} tokens and {virtual_tokens} virtual ones do not fit the \
             model's {positions} positions; lower `max_length` or `num_virtual_tokens`"
        );
        let Some(max_new_tokens) = task.max_new_tokens() else {
            return Ok(());
        };
        let asked = splits.dev.iter().chain(&splits.test);
        let prompt = asked.map(|e| e.prompt().len()).max().unwrap_or(0);
        ensure!(
            prompt + max_new_tokens + virtual_tokens <= positions,
            "prompts of up to {prompt} tokens, {max_new_tokens} new ones and {virtual_tokens} \
             virtual ones do not fit the model's {positions} positions; lower `max_length`, \
             `max_new_tokens` or `num_virtual_tokens`"
        );
        Ok(())
    }

    /// Makes the examples, which are of one task, those of the task of this number; `heads` are
    /// those of the model that is to be asked, which may know other tasks too.
    pub(crate) fn become_task(&mut self, number: usize, heads: Heads) {
        let splits = &mut self.splits;
        for split in [&mut splits.train, &mut splits.dev, &mut splits.test] {
            split
                .iter_mut()
                .for_each(|example| example.become_task(number, &heads));
        }
        self.heads = heads;
    }
}

impl tasks::split::Example for Example {
    fn input(&self) -> &str {
        &self.input
    }
}

fn assemble(task: Option<&str>, encoded: Encoded, tables: &Rows, limit: &Limit) -> Data {
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
        heads: Heads::new(task, encoded.labels),
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
    pub loaded: Loaded,
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
    let mut init = peft_core::Init::new(seed, device);
    let loaded = tables.base(task, folder, &mut init)?;
    let (data, tokenizer) = examples(task, folder, &tables, &loaded)?;
    Ok(Prepared {
        loaded,
        data,
        tokenizer,
    })
}

/// The task's examples for a model that was read from this folder, and its tokenizer.
///
/// # Errors
/// If the tokenizer cannot be read, or a row is not what the task asks for; the error names file
/// and line.
pub fn examples(
    task: &Task,
    folder: &Path,
    tables: &Tables,
    loaded: &Loaded,
) -> Result<(Data, Tokenizer)> {
    let tokenizer = source::tokenizer(folder, &loaded.model)?;
    let mut parts = Vec::new();
    for ((name, task), rows) in task.members().into_iter().zip(&tables.0) {
        let part = || -> Result<Data> {
            encode::check(task, &loaded.model)?;
            let chat = chat_template(task, folder)?;
            let eos = source::eos(&loaded.config, &tokenizer);
            let encoded = encode(rows, task, eos, &tokenizer, chat)?;
            Ok(assemble(name, encoded, rows, task.limit()))
        };
        let part = match name {
            Some(name) => part().with_context(|| format!("task `{name}`"))?,
            None => part()?,
        };
        parts.push((name, part));
    }
    let data = mixture::joined(parts)?;
    if let Some(example) = data.splits.train.iter().find(|e| e.ids.is_empty()) {
        anyhow::bail!("the example `{}` has no tokens", example.input());
    }
    Ok((data, tokenizer))
}
