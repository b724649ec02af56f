//! Rows to examples.

use anyhow::{Result, ensure};
use models::Model;
use tasks::chat_template::ChatTemplate;
use tasks::classify::{ClassConfig, ClassEncoder};
use tasks::lm::{EndOfTurn, LmConfig, LmEncoder, LmExample};
use tasks::read::Table;
use tokenizers::Tokenizer;

use super::{Example, Rows, Target};
use crate::study::Task;

/// The examples of the three splits and what goes with them.
pub(super) struct Encoded {
    pub(super) examples: Vec<Vec<Example>>,
    pub(super) labels: Vec<String>,
    pub(super) eos: Option<u32>,
    pub(super) stop: Option<String>,
    pub(super) warnings: Vec<String>,
}

/// Refuses a model of the wrong kind for a task, or with too few positions for it.
///
/// # Errors
/// If it does not fit the task.
pub(super) fn check(task: &Task, model: &Model) -> Result<()> {
    let longest = match task {
        Task::Completion {
            max_length,
            max_new_tokens,
            ..
        } => {
            ensure!(
                model.is_causal(),
                "a completion task needs a language model"
            );
            max_length + max_new_tokens
        }
        Task::Classification { max_length, .. } => {
            ensure!(
                !model.is_causal(),
                "a classification task needs a model of the BERT family"
            );
            *max_length
        }
        Task::Mixture(_) => unreachable!("its tasks are checked one by one"),
    };
    let limit = model.max_length();
    ensure!(
        longest <= limit,
        "examples of up to {longest} tokens do not fit the model's {limit} positions; lower \
         `max_length` (or `max_new_tokens`)"
    );
    Ok(())
}

/// Tokenises the rows. `eos` is asked for by completions only.
///
/// # Errors
/// If a row lacks a field or has an unknown label.
pub(super) fn encode(
    tables: &Rows,
    task: &Task,
    eos: Result<u32>,
    tokenizer: &Tokenizer,
    chat: Option<ChatTemplate>,
) -> Result<Encoded> {
    match task {
        Task::Completion {
            prompt,
            completion,
            format,
            loss_on,
            max_length,
            overlong,
            ..
        } => {
            let lm = LmConfig {
                prompt: prompt.clone(),
                completion: completion.clone(),
                layout: *format,
                loss_on: *loss_on,
                max_length: *max_length,
                overlong: *overlong,
            };
            let eos = eos?;
            completions(&LmEncoder::new(lm, tokenizer, eos, chat)?, tables, eos)
        }
        Task::Classification {
            text,
            pair,
            label,
            labels,
            max_length,
            ..
        } => {
            let class = ClassConfig {
                text: text.clone(),
                pair: pair.clone(),
                label: label.clone(),
                labels: labels.clone(),
                max_length: *max_length,
            };
            let encoder = ClassEncoder::new(class, tokenizer, &tables.splits[0].1)?;
            classes(&encoder, tables)
        }
        Task::Mixture(_) => unreachable!("its tasks are encoded one by one"),
    }
}

fn completions(encoder: &LmEncoder, tables: &Rows, eos: u32) -> Result<Encoded> {
    let mut encoded = Encoded {
        examples: Vec::new(),
        labels: Vec::new(),
        eos: Some(eos),
        stop: None,
        warnings: Vec::new(),
    };
    for (name, table) in &tables.splits {
        let data = encoder.encode(table)?;
        let losses = data.losses().into_iter();
        encoded
            .warnings
            .extend(losses.map(|loss| format!("{name}: {loss}")));
        match data.end_of_turn {
            Some(EndOfTurn {
                token: Some(token), ..
            }) => encoded.eos = Some(token),
            Some(EndOfTurn { text, token: None }) => encoded.stop = Some(text),
            None => {}
        }
        let examples = data.examples.into_iter().map(completion);
        encoded.examples.push(examples.collect());
    }
    Ok(encoded)
}

fn completion(example: LmExample) -> Example {
    let (length, answer) = (example.ids.len(), example.completion_start);
    let target = match &example.loss[..] {
        [only] if *only == (answer..length) => Target::Completion(answer),
        _ => Target::Parts {
            learned: example.loss,
            answer,
        },
    };
    Example {
        task: 0,
        target,
        ids: example.ids,
        input: example.prompt_text,
        expected: example.completion_text,
    }
}

fn classes(encoder: &ClassEncoder, tables: &Rows) -> Result<Encoded> {
    let split = |(_, table): &(_, Table)| {
        let examples = encoder.encode(table)?.into_iter().map(|e| Example {
            task: 0,
            target: Target::Class {
                output: e.label,
                of: 0..encoder.labels().names().len(),
            },
            expected: encoder.labels().names()[e.label].clone(),
            ids: e.ids,
            input: e.text,
        });
        Ok(examples.collect())
    };
    Ok(Encoded {
        examples: tables.splits.iter().map(split).collect::<Result<_>>()?,
        labels: encoder.labels().names().to_vec(),
        eos: None,
        stop: None,
        warnings: Vec::new(),
    })
}
