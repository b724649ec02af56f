//! Rows to classification examples: a text, or a pair of texts, and a label.

use minijinja::Environment;
use serde::{Deserialize, Serialize};
use tokenizers::utils::truncation::TruncationStrategy;
use tokenizers::{EncodeInput, Tokenizer, TruncationDirection, TruncationParams};

use crate::TaskError;
use crate::error::listed;
use crate::read::Table;
use crate::split::Example;
use crate::template::{Text, environment};
use crate::tokenizer::unlimited;

/// How a row becomes an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassConfig {
    /// Template of the text: `"{{ sentence }}"`.
    pub text: String,
    /// Template of a second text, for tasks on pairs; the tokenizer sets the two apart.
    #[serde(default)]
    pub pair: Option<String>,
    /// Field of the label.
    pub label: String,
    /// The labels, in the order of their class indices; collected from the training file if not
    /// given.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
    /// Most tokens of an example, special tokens included.
    pub max_length: usize,
}

/// One example as a model takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassExample {
    /// The text between the tokenizer's special tokens.
    pub ids: Vec<u32>,
    /// For each id, which text it is of: 0, or 1 for the second of a pair.
    pub type_ids: Vec<u32>,
    /// Class index.
    pub label: usize,
    /// The text, the second of a pair behind a line end.
    pub text: String,
}

impl Example for ClassExample {
    fn input(&self) -> &str {
        &self.text
    }
}

/// The labels of a task; a label's place is its class index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels(Vec<String>);

impl Labels {
    /// Labels in a given order.
    ///
    /// # Errors
    /// If there are fewer than two or one is named twice.
    pub fn new(names: Vec<String>) -> Result<Self, TaskError> {
        if names.len() < 2 {
            let reason = format!(
                "the labels are {}; expected at least two to tell apart",
                listed(names.iter().map(String::as_str))
            );
            return Err(TaskError::Labels { reason });
        }
        if let Some((_, twice)) = names
            .iter()
            .enumerate()
            .find(|(i, name)| names[..*i].contains(name))
        {
            let reason = format!("label `{twice}` is named twice; expected different names");
            return Err(TaskError::Labels { reason });
        }
        Ok(Self(names))
    }

    /// The labels a training file holds, sorted: as numbers if all of them are, else as text.
    ///
    /// # Errors
    /// If a row has no label, or all rows have the same.
    pub fn collect(train: &Table, field: &str) -> Result<Self, TaskError> {
        let mut names = Vec::new();
        for row in &train.rows {
            let name = train.text(row, field)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let numbers: Option<Vec<i64>> = names.iter().map(|name| name.parse().ok()).collect();
        match numbers {
            Some(_) => names.sort_by_key(|name| name.parse::<i64>().ok()),
            None => names.sort(),
        }
        Self::new(names)
    }

    /// The labels in the order of their indices.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The class index of a label.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known == name)
    }
}

/// Turns rows into [`ClassExample`]s.
pub struct ClassEncoder {
    config: ClassConfig,
    labels: Labels,
    tokenizer: Tokenizer,
    environment: Environment<'static>,
}

impl ClassEncoder {
    /// Checks the templates and settles the labels: those of the configuration, or those that
    /// `train` holds.
    ///
    /// # Errors
    /// If a template is not valid, the labels make no classification, or the limit leaves no room
    /// for text between the special tokens.
    pub fn new(
        config: ClassConfig,
        tokenizer: &Tokenizer,
        train: &Table,
    ) -> Result<Self, TaskError> {
        let environment = environment();
        Text::compile(&environment, "text", &config.text)?.check_fields()?;
        if let Some(pair) = &config.pair {
            Text::compile(&environment, "pair", pair)?;
        }
        let labels = match &config.labels {
            Some(names) => Labels::new(names.clone())?,
            None => Labels::collect(train, &config.label)?,
        };
        let mut tokenizer = unlimited(tokenizer.clone())?;
        let texts = if config.pair.is_some() {
            ("", "").into()
        } else {
            "".into()
        };
        let special = tokenizer
            .encode::<EncodeInput>(texts, true)
            .map_err(TaskError::tokenizer)?
            .len();
        if config.max_length <= special {
            return Err(TaskError::MaxLength {
                found: config.max_length,
                least: special + 1,
            });
        }
        // The library makes room for the special tokens, so the last of them is kept.
        let truncation = TruncationParams {
            max_length: config.max_length,
            direction: TruncationDirection::Right,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(TaskError::tokenizer)?;
        Ok(Self {
            config,
            labels,
            tokenizer,
            environment,
        })
    }

    /// The labels in use.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The examples of a table, in its order.
    ///
    /// # Errors
    /// If a row lacks a field or its label is unknown.
    pub fn encode(&self, table: &Table) -> Result<Vec<ClassExample>, TaskError> {
        let text = Text::compile(&self.environment, "text", &self.config.text)?;
        let pair = match &self.config.pair {
            Some(pair) => Some(Text::compile(&self.environment, "pair", pair)?),
            None => None,
        };
        table
            .rows
            .iter()
            .map(|row| {
                let label = table.text(row, &self.config.label)?;
                let label = self
                    .labels
                    .index(&label)
                    .ok_or_else(|| TaskError::UnknownLabel {
                        at: table.at(row),
                        label,
                        known: listed(self.labels.0.iter().map(String::as_str)),
                    })?;
                let mut text = text.render(table, row)?;
                let pair = pair
                    .as_ref()
                    .map(|pair| pair.render(table, row))
                    .transpose()?;
                let input: EncodeInput = match &pair {
                    Some(pair) => (text.as_str(), pair.as_str()).into(),
                    None => text.as_str().into(),
                };
                let encoding = self
                    .tokenizer
                    .encode(input, true)
                    .map_err(TaskError::tokenizer)?;
                if let Some(pair) = pair {
                    text = format!("{text}\n{pair}");
                }
                let (ids, type_ids) = (
                    encoding.get_ids().to_vec(),
                    encoding.get_type_ids().to_vec(),
                );
                Ok(ClassExample {
                    ids,
                    type_ids,
                    label,
                    text,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
