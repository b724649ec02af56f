//! Texts from a language model: shown while they grow, ended by a token, a text or their length.

use std::ops::ControlFlow;

use anyhow::{Result, anyhow, ensure};
use burn::tensor::Device;
use models::{End, Generation, Model, generate_watched};
use peft_core::Adapted;
use serde::Serialize;
use tokenizers::Tokenizer;

/// A language model that writes text.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The model, in inference mode.
    pub model: &'a Adapted<Model>,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its device.
    pub device: &'a Device,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// The model wrote an ending token.
    Eos,
    /// It wrote a text that was to stop it.
    StopText,
    /// It has as many tokens as were allowed.
    Length,
}

/// What the model wrote after a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The text, without what ended it.
    pub text: String,
    /// Number of tokens the model wrote, those of a stop text included.
    pub tokens: usize,
    /// Why it ended.
    pub stopped: Stopped,
}

impl Writer<'_> {
    /// The ids of a text.
    ///
    /// # Errors
    /// If it has no tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_rendered(text, true)
    }

    /// The ids of a text, with the tokenizer's special tokens around it or as it stands.
    ///
    /// # Errors
    /// If it has no tokens.
    pub fn encode_rendered(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, special);
        let encoding = encoding.map_err(|e| anyhow!("{e}"))?;
        ensure!(!encoding.is_empty(), "the prompt `{text}` has no tokens");
        Ok(encoding.get_ids().to_vec())
    }

    /// Continues each prompt. Each text also ends before the first of the texts of `stop`. `show`
    /// gets the row of a text and its next piece, as soon as that piece is certain.
    ///
    /// # Errors
    /// If the prompts leave no room for the new tokens, a text of `stop` is empty, the tokenizer
    /// cannot decode, or `show` fails.
    pub fn complete(
        &self,
        prompts: &[&[u32]],
        generation: &Generation,
        stop: &[String],
        show: &mut dyn FnMut(usize, &str) -> Result<()>,
    ) -> Result<Vec<Completion>> {
        ensure!(!stop.iter().any(String::is_empty), "a stop text is empty");
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
        let (new, limit) = (generation.max_new_tokens, self.model.host.max_length());
        ensure!(
            longest + new <= limit,
            "{longest} prompt tokens and {new} new ones exceed the model's {limit} positions; \
             lower `--max-new-tokens`"
        );
        let mut drafts = vec![Draft::default(); prompts.len()];
        let mut failed = None;
        let mut watch = |row: usize, tokens: &[u32]| {
            let grown = self.decode(tokens).and_then(|text| {
                let draft: &mut Draft = &mut drafts[row];
                let piece = draft.grow(text, stop);
                if !piece.is_empty() {
                    show(row, &piece)?;
                }
                Ok(draft.stopped)
            });
            match grown {
                Ok(false) if failed.is_none() => ControlFlow::Continue(()),
                Ok(_) => ControlFlow::Break(()),
                Err(error) => {
                    failed.get_or_insert(error);
                    ControlFlow::Break(())
                }
            }
        };
        let texts = generate_watched(self.model, prompts, generation, self.device, &mut watch);
        if let Some(error) = failed {
            return Err(error);
        }
        let mut completions = Vec::new();
        for (row, (draft, text)) in drafts.into_iter().zip(texts).enumerate() {
            let rest = draft.rest();
            if !rest.is_empty() {
                show(row, rest)?;
            }
            completions.push(Completion {
                text: draft.text,
                tokens: text.tokens.len(),
                stopped: match text.end {
                    End::Eos => Stopped::Eos,
                    End::Stopped => Stopped::StopText,
                    End::Length => Stopped::Length,
                },
            });
        }
        Ok(completions)
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(tokens, true)
            .map_err(|e| anyhow!("{e}"))
    }
}

/// A text while it grows.
#[derive(Clone, Default)]
struct Draft {
    text: String,
    shown: String,
    stopped: bool,
}

impl Draft {
    /// Takes the text with its newest token; returns what may be shown of it now.
    fn grow(&mut self, text: String, stop: &[String]) -> String {
        self.text = text;
        let found = stop.iter().filter_map(|stop| self.text.find(stop.as_str()));
        if let Some(end) = found.min() {
            self.text.truncate(end);
            self.stopped = true;
        }
        let certain = match self.stopped {
            true => self.text.len(),
            false => certain(&self.text, stop),
        };
        let piece = match self.text[..certain].strip_prefix(self.shown.as_str()) {
            Some(piece) => piece.to_string(),
            None => String::new(),
        };
        self.shown += &piece;
        piece
    }

    /// What is not shown once the text is finished.
    fn rest(&self) -> &str {
        self.text.strip_prefix(self.shown.as_str()).unwrap_or("")
    }
}

/// Length of the beginning of a text that later tokens will not change: without a character that
/// still lacks bytes, and without what may be the start of a stop text.
fn certain(text: &str, stop: &[String]) -> usize {
    let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
    let starts = text[..whole].char_indices().map(|(start, _)| start);
    let mut doubtful = starts.filter(|start| {
        let end = &text[*start..whole];
        stop.iter().any(|stop| stop.starts_with(end))
    });
    doubtful.next().unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces shown of a text that grows so, and the text in the end.
    fn pieces(texts: &[&str], stop: &[&str]) -> (Vec<String>, String, bool) {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut draft = Draft::default();
        let mut pieces = Vec::new();
        for text in texts {
            pieces.push(draft.grow(text.to_string(), &stop));
        }
        pieces.push(draft.rest().to_string());
        (pieces, draft.text.clone(), draft.stopped)
    }

    #[test]
    fn pieces_put_together_are_the_text() {
        let (pieces, text, stopped) = pieces(&["a", "ab", "ab c"], &[]);
        assert_eq!(pieces, ["a", "b", " c", ""]);
        assert_eq!((text.as_str(), stopped), ("ab c", false));
    }

    #[test]
    fn a_character_is_shown_when_all_its_bytes_are_there() {
        let (pieces, text, _) = pieces(&["a\u{fffd}", "a\u{fffd}\u{fffd}", "aé!"], &[]);
        assert_eq!(pieces, ["a", "", "é!", ""]);
        assert_eq!(text, "aé!");
    }

    #[test]
    fn nothing_of_a_stop_text_is_shown_even_if_it_comes_in_pieces() {
        let (pieces, text, stopped) = pieces(&["Hi\n", "Hi\nUs", "Hi\nUser: x"], &["\nUser:"]);
        assert_eq!(pieces, ["Hi", "", "", ""]);
        assert_eq!((text.as_str(), stopped), ("Hi", true));
    }

    #[test]
    fn what_only_looked_like_a_stop_text_is_shown_after_all() {
        let (pieces, text, stopped) = pieces(&["Hi\n", "Hi\nyou", "Hi\nyou\n"], &["\nUser:"]);
        assert_eq!(pieces, ["Hi", "\nyou", "", "\n"]);
        assert_eq!((text.as_str(), stopped), ("Hi\nyou\n", false));
    }

    #[test]
    fn the_first_of_several_stop_texts_counts() {
        let (_, text, _) = pieces(&["one two three"], &["three", "two"]);
        assert_eq!(text, "one ");
    }
}
