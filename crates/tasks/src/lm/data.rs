//! What an encoder is told, and what it makes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::split::Example;

/// What to do with a completion that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// Leave out its end and count it in [`LmData::cut`].
    #[default]
    Truncate,
    /// Stop with an error that names the row.
    Error,
    /// Leave the row out and count it in [`LmData::skipped`].
    Skip,
}

/// Which tokens are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// The completion; of a chat every turn of the assistant, each with the token that ends it.
    #[default]
    Completion,
    /// Every token that has one before it.
    All,
}

impl LossOn {
    /// Whether it is what is done unless something else is asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a row becomes an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmConfig {
    /// Template of the prompt: `"{{ question }}\nAnswer:"`. Not used with a layout.
    #[serde(default)]
    pub prompt: String,
    /// Template of the completion: `" {{ answer }}"`. Not used with a layout.
    #[serde(default)]
    pub completion: String,
    /// A known layout of the rows, in place of the two templates.
    #[serde(default)]
    pub layout: Option<Layout>,
    /// Which tokens are learned.
    #[serde(default)]
    pub loss_on: LossOn,
    /// Most tokens of an example. A prompt that is too long loses its start, a chat its first
    /// turns; only a completion that does not fit by itself is a matter of `overlong`.
    pub max_length: usize,
    /// What to do with a completion that does not fit.
    #[serde(default)]
    pub overlong: Overlong,
}

/// One example as a model takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LmExample {
    /// Prompt, completion, end token.
    pub ids: Vec<u32>,
    /// The parts of `ids` that are learned, in order; none is empty or starts at 0, so that every
    /// token of them has a token before it to be predicted from.
    pub loss: Vec<Range<usize>>,
    /// Where the completion starts in `ids`; of a chat the last turn of the assistant. At least 1.
    pub completion_start: usize,
    /// The prompt in full.
    pub prompt_text: String,
    /// The completion in full.
    pub completion_text: String,
}

impl Example for LmExample {
    fn input(&self) -> &str {
        &self.prompt_text
    }
}

/// What a chat template writes behind a turn of the assistant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndOfTurn {
    /// The text, such as `<|im_end|>`.
    pub text: String,
    /// The token it is, where it is one.
    pub token: Option<u32>,
}

/// The examples of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LmData {
    /// In the order of the file; at least one.
    pub examples: Vec<LmExample>,
    /// Prompts that lost their start.
    pub truncated: usize,
    /// Completions that lost their end.
    pub cut: usize,
    /// Chats that lost their first turns.
    pub shortened: usize,
    /// Rows left out because their completion does not fit.
    pub skipped: usize,
    /// What ends an answer, where a chat template says so; the end token does otherwise.
    pub end_of_turn: Option<EndOfTurn>,
}

impl LmData {
    /// What was lost to the limit, in words; empty where nothing was.
    #[must_use]
    pub fn losses(&self) -> Vec<String> {
        let all = self.examples.len() + self.skipped;
        [
            (self.truncated, "prompts lost their start"),
            (self.shortened, "chats lost their first turns"),
            (self.cut, "completions lost their end"),
            (
                self.skipped,
                "rows were left out with a completion too long",
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} of {all} {what} to fit `max_length`"))
        .collect()
    }
}
