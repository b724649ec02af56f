//! Rows to causal language model examples: a prompt that is given and a completion that is learned,
//! or a chat of which the assistant's turns are learned.

mod chat;
mod data;
mod fit;
mod pair;

use std::collections::HashSet;
use std::ops::Range;

use minijinja::Environment;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::TaskError;
use crate::chat_template::ChatTemplate;
use crate::layout::{Layout, Sample};
use crate::read::{Row, Table};
use crate::template::{Text, environment};
use crate::tokenizer::{special_ids, unlimited};

use fit::{Draft, Fate};

pub use data::{EndOfTurn, LmConfig, LmData, LmExample, LossOn, Overlong};

/// Turns rows into [`LmExample`]s.
pub struct LmEncoder {
    config: LmConfig,
    tokenizer: Tokenizer,
    /// Without what surrounds a text, as chat templates write it themselves.
    bare: Tokenizer,
    /// The tokens that are no text.
    special: HashSet<u32>,
    eos: u32,
    environment: Environment<'static>,
    chat: Option<ChatTemplate>,
}

impl LmEncoder {
    /// Checks the templates and the limit. `eos` ends every completion; see [`token_id`]. `chat`
    /// writes chats as text.
    ///
    /// # Errors
    /// If a template is not valid, the limit leaves no room for a completion, or chats have no
    /// template.
    pub fn new(
        config: LmConfig,
        tokenizer: &Tokenizer,
        eos: u32,
        chat: Option<ChatTemplate>,
    ) -> Result<Self, TaskError> {
        // One token to predict from, one to predict, the end.
        const LEAST: usize = 3;
        if config.max_length < LEAST {
            return Err(TaskError::MaxLength {
                found: config.max_length,
                least: LEAST,
            });
        }
        if chat.is_none() && config.layout.is_some_and(Layout::is_chat) {
            return Err(TaskError::NoChatTemplate {
                place: "the model".to_string(),
                known: crate::error::listed(ChatTemplate::builtins()),
            });
        }
        let environment = environment();
        let prompt = Text::compile(&environment, "prompt", &config.prompt)?;
        let completion = Text::compile(&environment, "completion", &config.completion)?;
        if config.layout.is_none() {
            prompt.check_fields()?;
            completion.check_fields()?;
        }
        let tokenizer = unlimited(tokenizer.clone())?;
        let chat = chat.map(|chat| chat.with_end_token(tokenizer.id_to_token(eos)));
        let mut bare = tokenizer.clone();
        bare.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self {
            config,
            special: special_ids(&tokenizer),
            tokenizer,
            bare,
            eos,
            environment,
            chat,
        })
    }

    /// The examples of a table.
    ///
    /// # Errors
    /// If a row is not what its layout asks for or lacks a field, its completion is empty or too
    /// long, or there is nothing to predict the completion from; the message names the place.
    pub fn encode(&self, table: &Table) -> Result<LmData, TaskError> {
        let prompt = Text::compile(&self.environment, "prompt", &self.config.prompt)?;
        let completion = Text::compile(&self.environment, "completion", &self.config.completion)?;
        let chat = self.chat.as_ref().map(ChatTemplate::compile).transpose()?;
        let mut data = LmData::default();
        for row in &table.rows {
            let sample = match self.config.layout {
                Some(layout) => layout.sample(table, row)?,
                None => Sample::Pair {
                    prompt: prompt.render(table, row)?,
                    completion: completion.render(table, row)?,
                },
            };
            let draft = match (sample, &chat) {
                (Sample::Pair { prompt, completion }, _) => {
                    if completion.trim().is_empty() {
                        let reason = "the completion is empty; expected text to learn";
                        return Err(table.error(row, reason));
                    }
                    self.pair(prompt, completion)?
                }
                (Sample::Chat(turns), Some(template)) => {
                    let chat = self
                        .chat(template, turns)
                        .map_err(|error| placed(error, table, row))?;
                    data.shortened += usize::from(chat.shortened);
                    data.end_of_turn = data.end_of_turn.or(chat.end_of_turn);
                    chat.draft
                }
                (Sample::Chat(_), None) => unreachable!("checked when the encoder was made"),
            };
            self.add(&mut data, draft, table, row)?;
        }
        if data.examples.is_empty() {
            let reason = "every completion is longer than `max_length`; raise it";
            return Err(table.error(&table.rows[0], reason));
        }
        Ok(data)
    }

    /// Brings an example to its length and adds it.
    fn add(
        &self,
        data: &mut LmData,
        draft: Draft,
        table: &Table,
        row: &Row,
    ) -> Result<(), TaskError> {
        if draft.answer == 0 {
            let reason = "the prompt has no tokens; expected text to go on from";
            return Err(table.error(row, reason));
        }
        let most = self.config.max_length;
        let (fate, example) = draft.fit(most);
        match (fate, self.config.overlong) {
            (Fate::Whole, _) => {}
            (Fate::PromptCut, _) => data.truncated += 1,
            (Fate::CompletionCut { .. }, Overlong::Truncate) => data.cut += 1,
            (Fate::CompletionCut { .. } | Fate::NothingLeft { .. }, Overlong::Skip) => {
                data.skipped += 1;
                return Ok(());
            }
            (Fate::CompletionCut { found }, Overlong::Error) => {
                return Err(TaskError::Overlong {
                    at: table.at(row),
                    found,
                    most,
                });
            }
            (Fate::NothingLeft { kept }, _) => {
                let reason = format!(
                    "{kept} tokens are always kept in front, which leaves none of `max_length` = \
                     {most} for the completion; raise `max_length`"
                );
                return Err(table.error(row, reason));
            }
        }
        data.examples.push(example);
        Ok(())
    }

    /// The parts of an example that are learned, given those of completions.
    fn loss(&self, completions: Vec<Range<usize>>, length: usize) -> Vec<Range<usize>> {
        match self.config.loss_on {
            LossOn::Completion => completions,
            LossOn::All => vec![1..length],
        }
    }
}

/// An error about a row, with its place.
fn placed(error: TaskError, table: &Table, row: &Row) -> TaskError {
    match error {
        TaskError::ChatTemplate { .. } => table.error(row, error.to_string()),
        other => other,
    }
}

/// The id of a token by its text, such as `<|endoftext|>`.
///
/// # Errors
/// If the tokenizer has no such token.
pub fn token_id(tokenizer: &Tokenizer, token: &str) -> Result<u32, TaskError> {
    let unknown = || TaskError::UnknownToken {
        token: token.to_string(),
    };
    tokenizer.token_to_id(token).ok_or_else(unknown)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod chat_tests;
