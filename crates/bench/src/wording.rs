//! Texts in the configuration of a method, from which virtual tokens start. Methods know no tokenizer:
//! before one is made, the ids of a text's tokens take its place, those of special tokens among them, as
//! in HF PEFT. A trial is known by its text, and an adapter keeps the ids.

use std::path::Path;

use anyhow::{Error, Result};
use models::Model;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::source;
use crate::trial::Trial;

/// The key of a method, or of a part of one, that says what its virtual tokens start from.
const START: &str = "prompt_tuning_init";
/// The key under it for a text.
const TEXT: &str = "text";

/// The text of every such key in a configuration, its parts' included.
fn texts(config: &mut Value) -> Vec<&mut Value> {
    match config {
        Value::Object(keys) => {
            let each = keys.iter_mut().flat_map(|(key, value)| match &**key {
                START => value
                    .get_mut(TEXT)
                    .filter(|text| text.is_string())
                    .into_iter()
                    .collect(),
                _ => texts(value),
            });
            each.collect()
        }
        Value::Array(values) => values.iter_mut().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Whether a configuration has a text.
pub(crate) fn has_texts(config: &Value) -> bool {
    !texts(&mut config.clone()).is_empty()
}

/// A configuration with the ids of the tokens in place of its texts.
fn tokenized(mut config: Value, ids: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Value> {
    for text in texts(&mut config) {
        *text = ids(text.as_str().unwrap_or_default())?.into();
    }
    Ok(config)
}

fn by(tokenizer: &Tokenizer) -> impl Fn(&str) -> Result<Vec<u32>> {
    |text| {
        let encoded = tokenizer.encode(text, true).map_err(Error::msg)?;
        Ok(encoded.get_ids().to_vec())
    }
}

/// A configuration as it is for a model; `folder` is the model's. One of random weights, which has
/// none, is only measured, and its virtual tokens may start anywhere.
///
/// # Errors
/// If there is a text and the folder has no tokenizer.
pub(crate) fn for_model(config: Value, folder: Option<&Path>, model: &Model) -> Result<Value> {
    if !has_texts(&config) {
        return Ok(config);
    }
    match folder {
        Some(folder) => tokenized(config, by(&source::tokenizer(folder, model)?)),
        None => tokenized(config, |_| Ok(vec![0])),
    }
}

impl Trial {
    /// The trial with the ids of the tokens in place of the texts of its configuration.
    ///
    /// # Errors
    /// If a text cannot be tokenized.
    pub(crate) fn tokenized(&self, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self {
            config: tokenized(self.config.clone(), by(tokenizer))?,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_of_a_method_and_of_its_parts_become_ids_and_nothing_else_does() {
        let start = |text: Value| json!({"kind": "prompt_tuning", "prompt_tuning_init": text});
        let config = |text: Value| {
            json!({
                "text": "left alone", "parts": [
                    start(json!({ "text": text })), start(json!("random")),
                    start(json!({"text": [4, 2]})),
                ],
                "prompt_tuning_init": {"text": text},
            })
        };
        let by_length = |text: &str| Ok(vec![text.len() as u32, 1]);
        let found = tokenized(config(json!("abc")), by_length).unwrap();
        assert_eq!(found, config(json!([3, 1])));
        assert!(has_texts(&config(json!("abc"))) && !has_texts(&found));
    }
}
