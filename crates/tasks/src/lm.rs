//! Rows to causal language model examples: a prompt that is given and a completion that is learned.

use minijinja::Environment;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::TaskError;
use crate::read::Table;
use crate::split::Example;
use crate::template::{Text, environment};

/// What to do with a completion that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// Stop with an error that names the row.
    #[default]
    Error,
    /// Leave the row out and count it in [`LmData::skipped`].
    Skip,
}

/// How a row becomes an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmConfig {
    /// Template of the prompt: `"{{ question }}\nAnswer:"`.
    pub prompt: String,
    /// Template of the completion: `" {{ answer }}"`.
    pub completion: String,
    /// Most tokens of an example. A prompt that is too long loses its start; a completion is
    /// never cut.
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
    /// Where the completion starts in `ids`; only from here on is the loss taken. At least 1, so
    /// that every completion token has a token before it to be predicted from.
    pub completion_start: usize,
    /// The prompt in full.
    pub prompt_text: String,
    /// The completion.
    pub completion_text: String,
}

impl Example for LmExample {
    fn input(&self) -> &str {
        &self.prompt_text
    }
}

/// The examples of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LmData {
    /// In the order of the file.
    pub examples: Vec<LmExample>,
    /// Prompts that lost their start.
    pub truncated: usize,
    /// Rows left out because their completion does not fit.
    pub skipped: usize,
}

/// Turns rows into [`LmExample`]s.
pub struct LmEncoder {
    config: LmConfig,
    tokenizer: Tokenizer,
    eos: u32,
    environment: Environment<'static>,
}

impl LmEncoder {
    /// Checks the templates and the limit. `eos` ends every completion; see [`token_id`].
    ///
    /// # Errors
    /// If a template is not valid or the limit leaves no room for a completion.
    pub fn new(config: LmConfig, tokenizer: &Tokenizer, eos: u32) -> Result<Self, TaskError> {
        // One token to predict from, one to predict, the end.
        const LEAST: usize = 3;
        if config.max_length < LEAST {
            return Err(TaskError::MaxLength {
                found: config.max_length,
                least: LEAST,
            });
        }
        let environment = environment();
        Text::compile(&environment, "prompt", &config.prompt)?;
        Text::compile(&environment, "completion", &config.completion)?;
        Ok(Self {
            config,
            tokenizer: unlimited(tokenizer)?,
            eos,
            environment,
        })
    }

    /// The examples of a table.
    ///
    /// # Errors
    /// If a row lacks a field, its completion is empty or (unless skipped) too long, or there is
    /// nothing to predict the completion from.
    pub fn encode(&self, table: &Table) -> Result<LmData, TaskError> {
        let prompt = Text::compile(&self.environment, "prompt", &self.config.prompt)?;
        let completion = Text::compile(&self.environment, "completion", &self.config.completion)?;
        let mut data = LmData {
            examples: Vec::new(),
            truncated: 0,
            skipped: 0,
        };
        for row in &table.rows {
            let refuse = |reason: &str| TaskError::File {
                path: table.path.clone(),
                line: row.line,
                reason: reason.to_string(),
            };
            let (prompt, completion) = (prompt.render(table, row)?, completion.render(table, row)?);
            if completion.trim().is_empty() {
                return Err(refuse("the completion is empty; expected text to learn"));
            }
            match self.example(prompt, completion)? {
                Encoded::Fits(example) => data.examples.push(example),
                Encoded::Cut(example) => {
                    data.truncated += 1;
                    data.examples.push(example);
                }
                Encoded::Promptless => {
                    return Err(refuse(
                        "the prompt has no tokens; expected text to go on from",
                    ));
                }
                Encoded::Overlong(_) if self.config.overlong == Overlong::Skip => data.skipped += 1,
                Encoded::Overlong(found) => {
                    return Err(TaskError::Overlong {
                        path: table.path.clone(),
                        line: row.line,
                        found,
                        most: self.config.max_length,
                    });
                }
            }
        }
        Ok(data)
    }

    fn example(&self, prompt_text: String, completion_text: String) -> Result<Encoded, TaskError> {
        // Apart from each other: the boundary is where it will be at generation, when there is a
        // prompt and nothing else.
        let (mut ids, body) = self.prompt_ids(&prompt_text)?;
        if ids.is_empty() && body.is_empty() {
            return Ok(Encoded::Promptless);
        }
        let mut answer = self.ids(&completion_text)?;
        answer.push(self.eos);
        // One token at least must stand before the completion, to predict it from.
        if answer.len() + ids.len().max(1) > self.config.max_length {
            return Ok(Encoded::Overlong(answer.len()));
        }
        let room = self.config.max_length - ids.len() - answer.len();
        let cut = body.len().saturating_sub(room);
        ids.extend_from_slice(&body[cut..]);
        let completion_start = ids.len();
        ids.append(&mut answer);
        let example = LmExample {
            ids,
            completion_start,
            prompt_text,
            completion_text,
        };
        Ok(if cut > 0 {
            Encoded::Cut(example)
        } else {
            Encoded::Fits(example)
        })
    }

    /// The prompt's ids: the special tokens a model expects in front (Llama's `<s>`), which are
    /// never cut, and the text. Special tokens *behind* a text would end it before the completion
    /// starts, so they are left out.
    fn prompt_ids(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>), TaskError> {
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(TaskError::tokenizer)?;
        let special = encoding.get_special_tokens_mask();
        let lead = special.iter().take_while(|&&mark| mark == 1).count();
        let body = self.ids(text)?;
        Ok((encoding.get_ids()[..lead].to_vec(), body))
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(TaskError::tokenizer)?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// What became of a row.
enum Encoded {
    Fits(LmExample),
    /// Its prompt has lost its start.
    Cut(LmExample),
    /// There is nothing to predict its completion from.
    Promptless,
    /// Its completion has this many tokens, more than fit.
    Overlong(usize),
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

/// The tokenizer without the padding and truncation that its file may ask for: lengths are the
/// business of this crate and of the one that makes batches.
pub(crate) fn unlimited(tokenizer: &Tokenizer) -> Result<Tokenizer, TaskError> {
    let mut tokenizer = tokenizer.clone();
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(TaskError::tokenizer)?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests;
