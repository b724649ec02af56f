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
        layout: None,
        loss_on: LossOn::Completion,
        max_length,
        overlong: Overlong::Error,
    }
}

/// Bytes as tokens, so that lengths can be counted by eye.
fn bytes() -> Tokenizer {
    train_bpe(&["x".to_string()], 257).unwrap()
}

fn encode(config: LmConfig, lines: &[&str]) -> Result<LmData, TaskError> {
    LmEncoder::new(config, &bytes(), 0, None)
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
fn a_completion_that_does_not_fit_loses_its_end_and_is_counted_if_asked() {
    let lines = [
        r#"{"q": "x", "a": "fits"}"#,
        r#"{"q": "xyz", "a": "0123456789"}"#,
    ];
    let config = LmConfig {
        overlong: Overlong::Truncate,
        ..config(7)
    };
    let data = encode(config, &lines).unwrap();
    assert_eq!((data.examples.len(), data.truncated, data.cut), (2, 1, 1));
    let long = &data.examples[1];
    assert_eq!(bytes().decode(&long.ids, false).unwrap(), ": 01234");
    assert_eq!((long.completion_start, long.loss.clone()), (1, vec![1..7]));
    assert_eq!(
        long.completion_text, " 0123456789",
        "the reference is whole"
    );
    let expected = [
        "1 of 2 prompts lost their start to fit `max_length`",
        "1 of 2 completions lost their end to fit `max_length`",
    ];
    assert_eq!(data.losses(), expected);
}

#[test]
fn a_file_of_which_no_completion_fits_is_an_error() {
    let config = LmConfig {
        overlong: Overlong::Skip,
        ..config(5)
    };
    let message = encode(config, &[r#"{"q": "x", "a": "0123456789"}"#]).unwrap_err();
    assert!(
        message.to_string().contains("every completion"),
        "{message}"
    );
}

#[test]
fn every_token_with_one_before_it_is_learned_if_asked() {
    let config = LmConfig {
        loss_on: LossOn::All,
        ..config(64)
    };
    let data = encode(config, &[r#"{"q": "x", "a": "so"}"#]).unwrap();
    let example = &data.examples[0];
    assert_eq!(example.loss, [1..example.ids.len()]);
    assert_eq!(example.completion_start, "x\nAnswer:".len());
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
        let encoder = LmEncoder::new(config(max_length), &tokenizer, 0, None).unwrap();
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
    let encoder = LmEncoder::new(config(64), &tokenizer, 0, None).unwrap();
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
    assert!(message.contains("the prompt has no tokens"), "{message}");
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
    assert!(LmEncoder::new(config(2), &bytes(), 0, None).is_err());
}
