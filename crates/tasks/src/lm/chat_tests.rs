use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::read::from_rows;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat")
}

fn cases() -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden().join("cases.json")).unwrap()).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(golden().join("model/tokenizer.json")).unwrap()
}

/// The end token of the tokenizer, `</s>`.
const EOS: u32 = 1;

fn encoder(template: &str, max_length: usize, loss_on: LossOn) -> LmEncoder {
    let model = golden().join("model");
    let own = golden().join(format!("templates/{template}.jinja"));
    let choice = match own.is_file() {
        true => own.to_str().unwrap().to_string(),
        false => template.to_string(),
    };
    let config = LmConfig {
        prompt: String::new(),
        completion: String::new(),
        layout: Some(Layout::Messages),
        loss_on,
        max_length,
        overlong: Overlong::Truncate,
    };
    let template = ChatTemplate::chosen(&choice, &model).unwrap();
    LmEncoder::new(config, &tokenizer(), EOS, Some(template)).unwrap()
}

fn encode(encoder: &LmEncoder, turns: &Value) -> Result<LmData, String> {
    let table = from_rows("chats", &[json!({ "messages": turns })]).unwrap();
    encoder.encode(&table).map_err(|error| error.to_string())
}

/// The parts of an example that are learned, as text.
fn learned(example: &LmExample) -> Vec<String> {
    let decode = |range: &Range<usize>| {
        tokenizer()
            .decode(&example.ids[range.clone()], false)
            .unwrap()
    };
    example.loss.iter().map(decode).collect()
}

fn text(example: &LmExample) -> String {
    tokenizer().decode(&example.ids, false).unwrap()
}

fn talk(exchanges: &[(&str, &str)]) -> Value {
    exchanges
        .iter()
        .flat_map(|(user, assistant)| {
            [
                json!({"role": "user", "content": user}),
                json!({"role": "assistant", "content": assistant}),
            ]
        })
        .collect()
}

#[test]
fn tokens_and_mask_are_those_of_transformers() {
    let cases = cases();
    let masks = cases["masks"].as_array().unwrap();
    assert_eq!(masks.len(), 12);
    for case in masks {
        let chat = &cases["chats"][case["chat"].as_u64().unwrap() as usize];
        let encoder = encoder(case["template"].as_str().unwrap(), 1000, LossOn::Completion);
        let data = encode(&encoder, chat).unwrap();
        let example = &data.examples[0];
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let mask: Vec<u8> = serde_json::from_value(case["mask"].clone()).unwrap();
        assert_eq!(example.ids, ids[..example.ids.len()], "{case}");
        let mut found = vec![0; ids.len()];
        for range in &example.loss {
            found[range.clone()].fill(1);
        }
        assert_eq!(found, mask, "{case}");
    }
}

#[test]
fn every_answer_is_learned_with_the_token_that_ends_it_and_nothing_else() {
    let chat = talk(&[("Hi", "Hello"), ("Bye", "So long")]);
    for (template, end) in [
        ("chatml", "<|im_end|>"),
        ("zephyr", "</s>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
    ] {
        let data = encode(&encoder(template, 1000, LossOn::Completion), &chat).unwrap();
        let example = &data.examples[0];
        let expected = [format!("Hello{end}"), format!("So long{end}")];
        assert_eq!(learned(example), expected, "{template}");
        assert!(text(example).ends_with(end), "{template}");
        let end_of_turn = data.end_of_turn.unwrap();
        assert_eq!(end_of_turn.text, end);
        assert_eq!(end_of_turn.token, tokenizer().token_to_id(end));
    }
    let llama2 = encode(&encoder("llama2", 1000, LossOn::Completion), &chat).unwrap();
    assert_eq!(
        learned(&llama2.examples[0]),
        [" Hello </s>", " So long </s>"]
    );
}

#[test]
fn the_prompt_of_an_evaluation_ends_where_the_last_answer_starts() {
    let chat = talk(&[("Hi", "Hello"), ("Bye", " So long \n")]);
    let data = encode(&encoder("chatml", 1000, LossOn::Completion), &chat).unwrap();
    let example = &data.examples[0];
    let prompt = tokenizer()
        .decode(&example.ids[..example.completion_start], false)
        .unwrap();
    assert_eq!(prompt, example.prompt_text);
    assert!(prompt.ends_with("<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"));
    assert_eq!(example.completion_text, "So long");
}

#[test]
fn a_turn_that_nothing_ends_is_ended_by_the_end_of_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plain.jinja");
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                  {% if add_generation_prompt %}assistant:{% endif %}";
    std::fs::write(&file, source).unwrap();
    let encoder = encoder(file.to_str().unwrap(), 1000, LossOn::Completion);
    let data = encode(&encoder, &talk(&[("Hi", "Hello"), ("Bye", "So long")])).unwrap();
    let expected = [" Hello\n", " So long\n</s>"];
    assert_eq!(learned(&data.examples[0]), expected);
    assert_eq!(data.end_of_turn, None);
}

#[test]
fn a_chat_that_is_too_long_loses_its_first_exchanges_and_keeps_the_systems_turn() {
    let mut turns = vec![json!({"role": "system", "content": "Be brief."})];
    let long = talk(&[
        ("Hi one", "Hello one"),
        ("Hi two", "Hello two"),
        ("Hi three", "Hello three"),
    ]);
    turns.extend(long.as_array().unwrap().clone());
    let turns = Value::from(turns);
    let whole = encode(&encoder("chatml", 1000, LossOn::Completion), &turns).unwrap();
    let length = whole.examples[0].ids.len();
    assert_eq!(whole.losses(), [""; 0]);
    for (max_length, kept) in [(length - 1, 2), (length / 2 + 12, 1)] {
        let data = encode(&encoder("chatml", max_length, LossOn::Completion), &turns).unwrap();
        let example = &data.examples[0];
        assert!(example.ids.len() <= max_length);
        assert_eq!(learned(example).len(), kept, "at {max_length} of {length}");
        assert_eq!(learned(example)[kept - 1], "Hello three<|im_end|>");
        let start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi t";
        assert!(text(example).starts_with(start), "{}", text(example));
        assert_eq!((data.shortened, data.truncated, data.cut), (1, 0, 0));
        assert_eq!(
            data.losses(),
            ["1 of 1 chats lost their first turns to fit `max_length`"]
        );
    }
}

#[test]
fn a_single_exchange_that_is_too_long_loses_the_start_of_the_question() {
    let turns = json!([
        {"role": "system", "content": "Go."},
        {"role": "user", "content": "x".repeat(200)},
        {"role": "assistant", "content": "Yes"},
    ]);
    let data = encode(&encoder("chatml", 100, LossOn::Completion), &turns).unwrap();
    let example = &data.examples[0];
    assert_eq!(
        (data.truncated, data.shortened, example.ids.len()),
        (1, 0, 100)
    );
    assert_eq!(learned(example), ["Yes<|im_end|>"]);
    let start = "<|im_start|>system\nGo.<|im_end|>\nxxx";
    assert!(text(example).starts_with(start), "{}", text(example));
}

#[test]
fn the_token_that_begins_a_text_survives_the_cut() {
    let turns = talk(&[(&"x".repeat(200), "Yes")]);
    let data = encode(&encoder("llama2", 60, LossOn::Completion), &turns).unwrap();
    assert!(text(&data.examples[0]).starts_with("<s>xxx"));
    assert_eq!(learned(&data.examples[0]), [" Yes </s>"]);
}

#[test]
fn an_answer_that_does_not_fit_loses_its_end_and_is_counted() {
    let turns = talk(&[("Hi", &"y".repeat(200))]);
    let data = encode(&encoder("chatml", 40, LossOn::Completion), &turns).unwrap();
    assert_eq!((data.cut, data.examples[0].ids.len()), (1, 40));
    assert!(learned(&data.examples[0])[0].starts_with("yyyy"));
}

#[test]
fn everything_is_learned_of_a_chat_if_asked() {
    let chat = talk(&[("Hi", "Hello"), ("Bye", "So long")]);
    let data = encode(&encoder("chatml", 1000, LossOn::All), &chat).unwrap();
    let example = &data.examples[0];
    assert_eq!(example.loss, [1..example.ids.len()]);
    assert!(example.prompt_text.ends_with("assistant\n"));
}

#[test]
fn an_answer_that_also_stands_in_its_end_mark_is_not_taken_for_it() {
    let data = encode(
        &encoder("zephyr", 1000, LossOn::Completion),
        &talk(&[("?", "s")]),
    )
    .unwrap();
    assert_eq!(learned(&data.examples[0]), ["s</s>"]);
    assert_eq!(data.end_of_turn.unwrap().text, "</s>");
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("last.jinja");
    let source = "{% for m in messages %}{{ m.content if loop.last else '…' }};{% endfor %}";
    std::fs::write(&file, source).unwrap();
    let encoder = encoder(file.to_str().unwrap(), 1000, LossOn::Completion);
    let message = encode(&encoder, &talk(&[("Hi", "Hello"), ("Bye", "No")])).unwrap_err();
    assert!(
        message.starts_with("`chats` line 1: the chat template of"),
        "{message}"
    );
    assert!(
        message.contains("last.jinja`: turn 2 does not only add"),
        "{message}"
    );
}

#[test]
fn a_refusal_by_the_template_names_the_row() {
    let turns = json!([{"role": "assistant", "content": "I start"}]);
    let message = encode(&encoder("gemma", 1000, LossOn::Completion), &turns).unwrap_err();
    assert!(
        message.starts_with("`chats` line 1: the chat template of `gemma`"),
        "{message}"
    );
    assert!(
        message.contains("turns must go user, assistant"),
        "{message}"
    );
}

#[test]
fn chats_without_a_template_are_refused() {
    let config = LmConfig {
        layout: Some(Layout::Sharegpt),
        ..encoder("chatml", 10, LossOn::All).config
    };
    let error = LmEncoder::new(config, &tokenizer(), EOS, None)
        .err()
        .unwrap();
    assert!(error.to_string().contains("`chat_template`"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_is_said_and_however_long_some_of_the_last_answer_is_learned(
        texts in proptest::collection::vec("[a-zA-Zé漢 \n<|>_]{0,30}[a-z]", 2..9),
        max_length in 24..200usize,
        which in 0..4usize,
    ) {
        let exchanges: Vec<_> = texts.chunks_exact(2).map(|p| (p[0].as_str(), p[1].as_str())).collect();
        let name = ["chatml", "llama2", "llama3", "zephyr"][which];
        let data = encode(&encoder(name, max_length, LossOn::Completion), &talk(&exchanges)).unwrap();
        let example = &data.examples[0];
        prop_assert!(example.ids.len() <= max_length);
        let last = example.loss.last().unwrap();
        prop_assert_eq!(last.start, example.completion_start);
        prop_assert_eq!(last.end, example.ids.len());
        let answer = exchanges.last().unwrap().1.trim();
        let learned = learned(example).pop().unwrap();
        if data.cut == 0 {
            prop_assert!(learned.contains(answer), "{} in {}", answer, learned);
            prop_assert!(example.loss.len() <= exchanges.len());
        }
        if data.losses().is_empty() {
            prop_assert_eq!(example.loss.len(), exchanges.len());
        }
    }
}
