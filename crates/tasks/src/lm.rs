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
            let prompt_text = prompt.render(table, row)?;
            let completion_text = completion.render(table, row)?;
            if completion_text.trim().is_empty() {
                return Err(TaskError::EmptyCompletion {
                    path: table.path.clone(),
                    line: row.line,
                });
            }
            // Apart from each other: the boundary is where it will be at generation, when there
            // is a prompt and nothing else.
            let (lead, body) = self.prompt_ids(&prompt_text)?;
            let mut answer = self.ids(&completion_text)?;
            answer.push(self.eos);
            let most = self.config.max_length - lead.len().max(1).min(self.config.max_length);
            if answer.len() > most {
                match self.config.overlong {
                    Overlong::Skip => data.skipped += 1,
                    Overlong::Error => {
                        return Err(TaskError::Overlong {
                            path: table.path.clone(),
                            line: row.line,
                            found: answer.len(),
                            most: self.config.max_length,
                        });
                    }
                }
                continue;
            }
            if lead.is_empty() && body.is_empty() {
                return Err(TaskError::File {
                    path: table.path.clone(),
                    line: row.line,
                    reason: "the prompt is empty; expected text to predict the completion from"
                        .to_string(),
                });
            }
            let room = self.config.max_length - lead.len() - answer.len();
            let cut = body.len().saturating_sub(room);
            data.truncated += usize::from(cut > 0);
            let mut ids = lead;
            ids.extend_from_slice(&body[cut..]);
            let completion_start = ids.len();
            ids.append(&mut answer);
            data.examples.push(LmExample {
                ids,
                completion_start,
                prompt_text,
                completion_text,
            });
        }
        Ok(data)
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
mod tests {
    use std::path::Path;

    use super::*;
    use crate::read::{Format, parse};
    use crate::tokenizer::{END_OF_TEXT, train_bpe};

    fn table(lines: &[&str]) -> Table {
        let text = lines.join("\n");
        parse(Path::new("qa.jsonl"), text.as_bytes(), Format::Jsonl, None).unwrap()
    }

    fn config(max_length: usize) -> LmConfig {
        LmConfig {
            prompt: "{{ q }}\nAnswer:".to_string(),
            completion: " {{ a }}".to_string(),
            max_length,
            overlong: Overlong::Error,
        }
    }

    /// Bytes as tokens, so that lengths can be counted by eye.
    fn bytes() -> Tokenizer {
        train_bpe(&["x".to_string()], 257).unwrap()
    }

    fn encode(config: LmConfig, lines: &[&str]) -> Result<LmData, TaskError> {
        LmEncoder::new(config, &bytes(), 0)
            .unwrap()
            .encode(&table(lines))
    }

    #[test]
    fn the_loss_starts_where_the_completion_does_and_the_end_token_is_learned() {
        let data = encode(config(64), &[r#"{"q": "Why?", "a": "so"}"#]).unwrap();
        let example = &data.examples[0];
        let tokenizer = bytes();
        let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
        assert_eq!(
            decode(&example.ids[..example.completion_start]),
            "Why?\nAnswer:"
        );
        let expected = format!(" so{END_OF_TEXT}");
        assert_eq!(decode(&example.ids[example.completion_start..]), expected);
        assert_eq!(example.prompt_text, "Why?\nAnswer:");
        assert_eq!(example.completion_text, " so");
        assert_eq!((data.truncated, data.skipped), (0, 0));
    }

    #[test]
    fn a_long_prompt_loses_its_start_and_nothing_else() {
        let data = encode(config(13), &[r#"{"q": "0123456789", "a": "so"}"#]).unwrap();
        let example = &data.examples[0];
        assert_eq!(example.ids.len(), 13);
        let text = bytes().decode(&example.ids, false).unwrap();
        assert_eq!(text, format!("9\nAnswer: so{END_OF_TEXT}"));
        assert_eq!(data.truncated, 1);
    }

    #[test]
    fn a_completion_that_does_not_fit_is_an_error_with_its_line() {
        let lines = [
            r#"{"q": "x", "a": "fits"}"#,
            r#"{"q": "x", "a": "0123456789"}"#,
        ];
        let message = encode(config(12), &lines).unwrap_err().to_string();
        assert!(
            message.starts_with("`qa.jsonl` line 2: the completion has 12 tokens"),
            "{message}"
        );
        assert!(message.contains("`max_length` = 12"), "{message}");
    }

    #[test]
    fn a_completion_that_does_not_fit_is_skipped_and_counted_if_asked() {
        let lines = [
            r#"{"q": "x", "a": "fits"}"#,
            r#"{"q": "x", "a": "0123456789"}"#,
        ];
        let config = LmConfig {
            overlong: Overlong::Skip,
            ..config(12)
        };
        let data = encode(config, &lines).unwrap();
        assert_eq!((data.examples.len(), data.skipped), (1, 1));
    }

    #[test]
    fn a_completion_that_just_fits_keeps_one_token_to_predict_from() {
        let data = encode(config(5), &[r#"{"q": "x", "a": "so"}"#]).unwrap();
        assert_eq!(data.examples[0].completion_start, 1);
        assert!(encode(config(4), &[r#"{"q": "x", "a": "so"}"#]).is_err());
    }

    #[test]
    fn special_tokens_in_front_are_kept_and_those_behind_are_left_out() {
        let mut tokenizer = bytes();
        let template = tokenizers::processors::template::TemplateProcessing::builder()
            .try_single("<|endoftext|> $A <|endoftext|>")
            .unwrap()
            .special_tokens(vec![(END_OF_TEXT, 0)])
            .build()
            .unwrap();
        tokenizer.with_post_processor(Some(template));
        for max_length in [64, 14] {
            let encoder = LmEncoder::new(config(max_length), &tokenizer, 0).unwrap();
            let data = encoder
                .encode(&table(&[r#"{"q": "0123456789", "a": "so"}"#]))
                .unwrap();
            let example = &data.examples[0];
            assert_eq!(example.ids[0], 0);
            let ends = example.ids.iter().filter(|&&id| id == 0).count();
            assert_eq!(ends, 2, "one in front, one behind the completion");
        }
    }

    #[test]
    fn truncation_and_padding_of_the_tokenizer_file_are_set_aside() {
        let mut tokenizer = bytes();
        let truncation = tokenizers::TruncationParams {
            max_length: 4,
            ..Default::default()
        };
        tokenizer.with_truncation(Some(truncation)).unwrap();
        tokenizer.with_padding(Some(tokenizers::PaddingParams::default()));
        let encoder = LmEncoder::new(config(64), &tokenizer, 0).unwrap();
        let data = encoder
            .encode(&table(&[r#"{"q": "0123456789", "a": "so"}"#]))
            .unwrap();
        assert_eq!(
            data.examples[0].ids.len(),
            "0123456789\nAnswer: so".len() + 1
        );
    }

    #[test]
    fn a_missing_field_names_the_fields_there_are() {
        let message = encode(config(64), &[r#"{"q": "x", "b": "y"}"#])
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "`qa.jsonl` line 1 has no field `a`; its fields are `q`, `b`"
        );
    }

    #[test]
    fn an_empty_completion_is_an_error() {
        let message = encode(config(64), &[r#"{"q": "x", "a": ""}"#])
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "`qa.jsonl` line 1: the completion is empty; expected text to learn"
        );
    }

    #[test]
    fn an_empty_prompt_is_an_error() {
        let config = LmConfig {
            prompt: "{{ q }}".to_string(),
            ..config(64)
        };
        let message = encode(config, &[r#"{"q": "", "a": "x"}"#])
            .unwrap_err()
            .to_string();
        assert!(message.contains("the prompt is empty"), "{message}");
    }

    #[test]
    fn unknown_keys_tokens_and_limits_are_refused() {
        let text = r#"{"prompt": "", "completion": "", "max_length": 8, "max_len": 1}"#;
        let message = serde_json::from_str::<LmConfig>(text)
            .unwrap_err()
            .to_string();
        assert!(message.contains("max_len"), "{message}");
        assert!(
            token_id(&bytes(), "</s>")
                .unwrap_err()
                .to_string()
                .contains("`</s>`")
        );
        assert_eq!(token_id(&bytes(), END_OF_TEXT).unwrap(), 0);
        assert!(LmEncoder::new(config(2), &bytes(), 0).is_err());
    }
}
