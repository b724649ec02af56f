//! Rows of known layouts: what instruction and chat data sets are published as.

mod alpaca;
mod chat;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::TaskError;
use crate::read::{Row, Table, shortened};

/// Which fields a row has and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `instruction`, `input` (may be empty or missing) and `output`, in the two prompts of the
    /// Alpaca data set, with and without an input.
    Alpaca,
    /// `conversations`: a list of `from` (`system`, `human` or `user`, `gpt` or `assistant`) and
    /// `value`; a `system` field may come first.
    Sharegpt,
    /// `messages` (or `conversations`, or `chat`): a list of `role` (`system`, `user`, `assistant`)
    /// and `content`.
    Messages,
    /// `prompt` and `completion`.
    PromptCompletion,
}

impl Layout {
    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Layout::Alpaca => "alpaca",
            Layout::Sharegpt => "sharegpt",
            Layout::Messages => "messages",
            Layout::PromptCompletion => "prompt_completion",
        }
    }

    /// Whether its rows are chats, which take a chat template to be written as text.
    #[must_use]
    pub fn is_chat(self) -> bool {
        matches!(self, Layout::Sharegpt | Layout::Messages)
    }

    /// What a row holds.
    ///
    /// # Errors
    /// If a field is missing or empty or of another kind, a role is unknown, or a chat has no turn
    /// of the assistant; the message names file and place.
    pub fn sample(self, table: &Table, row: &Row) -> Result<Sample, TaskError> {
        match self {
            Layout::Alpaca => alpaca::sample(table, row),
            Layout::Sharegpt => chat::sharegpt(table, row).map(Sample::Chat),
            Layout::Messages => chat::messages(table, row).map(Sample::Chat),
            Layout::PromptCompletion => Ok(Sample::Pair {
                prompt: text(table, row, "prompt")?.to_string(),
                completion: text(table, row, "completion")?.to_string(),
            }),
        }
    }
}

/// What a row holds, whatever its layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sample {
    /// A text that is given and one that is learned.
    Pair {
        /// What is given.
        prompt: String,
        /// What is learned.
        completion: String,
    },
    /// A chat that ends with a turn of the assistant.
    Chat(Vec<Turn>),
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Who sets the scene.
    System,
    /// Who asks.
    User,
    /// Who answers: the model.
    Assistant,
}

/// One message of a chat, as chat templates take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said; never empty.
    pub content: String,
}

/// A field that must be a text with something in it.
fn text<'a>(table: &Table, row: &'a Row, field: &str) -> Result<&'a str, TaskError> {
    let value = row.fields.get(field);
    match value.ok_or_else(|| table.missing(row, field))? {
        Value::String(text) if text.trim().is_empty() => {
            Err(table.error(row, format!("field `{field}` is empty; expected text")))
        }
        Value::String(text) => Ok(text),
        other => {
            let found = shortened(other);
            Err(table.error(
                row,
                format!("field `{field}` is `{found}`; expected a text"),
            ))
        }
    }
}

/// A field that may be missing, null or empty.
fn optional<'a>(table: &Table, row: &'a Row, field: &str) -> Result<Option<&'a str>, TaskError> {
    match row.fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(_) => text(table, row, field).map(Some),
    }
}

#[cfg(test)]
mod tests;
