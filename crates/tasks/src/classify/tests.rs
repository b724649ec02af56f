use std::path::Path;

use super::*;
use crate::read::{Format, parse};

/// As BERT's: `[CLS] text [SEP] pair [SEP]`, whole words only.
fn tokenizer() -> Tokenizer {
    let json = r#"{
        "added_tokens": [], "normalizer": null, "decoder": null, "truncation": null,
        "padding": null, "pre_tokenizer": {"type": "Whitespace"}, "version": "1.0",
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {
            "[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "good": 3, "bad": 4, "film": 5}}}"#;
    Tokenizer::from_bytes(json).unwrap()
}

fn table(rows: &str) -> Table {
    let columns = ["sentence".to_string(), "label".to_string()];
    parse(
        Path::new("sst.tsv"),
        rows.as_bytes(),
        Format::Tsv,
        Some(&columns),
    )
    .unwrap()
}

fn config(max_length: usize) -> ClassConfig {
    ClassConfig {
        text: "{{ sentence }}".to_string(),
        pair: None,
        label: "label".to_string(),
        labels: None,
        max_length,
    }
}

#[test]
fn a_text_stands_between_the_special_tokens() {
    let table = table("good film\t1\nbad thing\t0\n");
    let encoder = ClassEncoder::new(config(8), &tokenizer(), &table).unwrap();
    let examples = encoder.encode(&table).unwrap();
    assert_eq!(examples[0].ids, [0, 3, 5, 1]);
    assert_eq!(examples[1].ids, [0, 4, 2, 1]);
    assert_eq!((examples[0].label, examples[1].label), (1, 0));
    assert_eq!(examples[0].text, "good film");
}

#[test]
fn a_text_that_is_cut_keeps_its_final_special_token() {
    let table = table("good good good good film\t1\nbad\t0\n");
    let encoder = ClassEncoder::new(config(4), &tokenizer(), &table).unwrap();
    assert_eq!(encoder.encode(&table).unwrap()[0].ids, [0, 3, 3, 1]);
}

#[test]
fn the_texts_of_a_pair_are_set_apart_and_both_are_kept() {
    let table = table("good good good good good\t1\nbad\t0\n");
    let config = ClassConfig {
        pair: Some("{{ sentence }} film".to_string()),
        ..config(9)
    };
    let encoder = ClassEncoder::new(config, &tokenizer(), &table).unwrap();
    let example = &encoder.encode(&table).unwrap()[0];
    assert_eq!(example.ids, [0, 3, 3, 3, 1, 3, 3, 3, 1]);
    assert_eq!(example.type_ids, [0, 0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(
        example.text,
        "good good good good good\ngood good good good good film"
    );
}

#[test]
fn an_unknown_label_is_an_error_with_its_line() {
    let train = table("good\tpos\nbad\tneg\n");
    let encoder = ClassEncoder::new(config(8), &tokenizer(), &train).unwrap();
    let message = encoder
        .encode(&table("good\tpos\n\nfilm\t-1\n"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "`sst.tsv` line 3: unknown label `-1`; the labels are `neg`, `pos`"
    );
}

#[test]
fn labels_sort_as_numbers_if_all_of_them_are() {
    let rows: String = [10, 2, 0, 1]
        .iter()
        .map(|label| format!("x\t{label}\n"))
        .collect();
    assert_eq!(
        Labels::collect(&table(&rows), "label").unwrap().names(),
        ["0", "1", "2", "10"]
    );
    let labels = Labels::collect(&table("x\t10\nx\t2\nx\ta\n"), "label").unwrap();
    assert_eq!(labels.names(), ["10", "2", "a"]);
}

#[test]
fn labels_given_keep_their_order() {
    let names = ["pos", "neg", "none"].map(str::to_string).to_vec();
    let config = ClassConfig {
        labels: Some(names),
        ..config(8)
    };
    let train = table("good\tpos\nbad\tneg\n");
    let encoder = ClassEncoder::new(config, &tokenizer(), &train).unwrap();
    let labels: Vec<_> = encoder
        .encode(&train)
        .unwrap()
        .iter()
        .map(|e| e.label)
        .collect();
    assert_eq!(labels, [0, 1]);
    assert_eq!(encoder.labels().names().len(), 3);
}

#[test]
fn labels_that_make_no_classification_are_refused() {
    let message = Labels::collect(&table("x\t1\ny\t1\n"), "label")
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "the labels are `1`; expected at least two to tell apart"
    );
    let names = ["a", "b", "a"].map(str::to_string).to_vec();
    assert!(
        Labels::new(names)
            .unwrap_err()
            .to_string()
            .contains("`a` is named twice")
    );
    let message = Labels::collect(&table("x\t1\ny\t0\n"), "lable")
        .unwrap_err()
        .to_string();
    assert!(message.contains("no field `lable`"), "{message}");
}

#[test]
fn a_limit_without_room_for_text_is_refused() {
    let train = table("good\t1\nbad\t0\n");
    let error = ClassEncoder::new(config(2), &tokenizer(), &train)
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "`max_length` = 2 is too small; expected at least 3"
    );
    let pair = ClassConfig {
        pair: Some("x".to_string()),
        ..config(3)
    };
    let error = ClassEncoder::new(pair, &tokenizer(), &train).err().unwrap();
    assert!(error.to_string().contains("expected at least 4"), "{error}");
}

#[test]
fn an_empty_label_is_an_error_with_its_row_in_any_split() {
    let message = |table: &Table| {
        let encoder = ClassEncoder::new(config(8), &tokenizer(), table);
        encoder.err().unwrap().to_string()
    };
    for rows in ["good\t1\nfilm\t\nbad\t0\n", "good\t1\nfilm\t \nbad\t0\n"] {
        let found = message(&table(rows));
        assert!(
            found.contains("`sst.tsv` line 2") && found.contains("`label` is empty"),
            "{found}"
        );
    }
    let encoder = ClassEncoder::new(config(8), &tokenizer(), &table("good\t1\nbad\t0\n")).unwrap();
    let error = encoder
        .encode(&table("bad\t0\nfilm\t\n"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 2") && error.contains("is empty"),
        "{error}"
    );
    let named = Labels::new(vec!["no".into(), String::new()]).unwrap_err();
    assert!(named.to_string().contains("is empty"), "{named}");
}
