//! Scores against those of scikit-learn, sacrebleu and the SQuAD script: `golden/metrics/make.py`.

use serde::Deserialize;
use tasks::metric::{Confusion, corpus_bleu, sentence_bleu, token_f1};

#[derive(Deserialize)]
struct Cases {
    classification: Vec<Classification>,
    bleu: Vec<Bleu>,
    token_f1: Vec<TokenF1>,
}

#[derive(Deserialize)]
struct Classification {
    classes: usize,
    truth: Vec<usize>,
    predicted: Vec<usize>,
    accuracy: f64,
    macro_f1: f64,
    matthews: f64,
}

#[derive(Deserialize)]
struct Bleu {
    rows: Vec<BleuRow>,
    bleu: f64,
}

#[derive(Deserialize)]
struct BleuRow {
    answer: String,
    references: Vec<String>,
    bleu: f64,
}

#[derive(Deserialize)]
struct TokenF1 {
    answer: String,
    reference: String,
    f1: f64,
}

fn cases() -> Cases {
    serde_json::from_str(include_str!("golden/metrics/cases.json")).unwrap()
}

#[track_caller]
fn assert_close(ours: f64, theirs: f64, what: &str) {
    assert!(
        (ours - theirs).abs() < 1e-12,
        "{what}: {ours}, expected {theirs}"
    );
}

#[test]
fn classes_score_as_scikit_learn_has_it() {
    let cases = cases().classification;
    assert!(cases.len() >= 17);
    for (index, case) in cases.iter().enumerate() {
        let ours = Confusion::new(&case.truth, &case.predicted, case.classes).unwrap();
        assert_close(
            ours.accuracy(),
            case.accuracy,
            &format!("accuracy of case {index}"),
        );
        assert_close(
            ours.macro_f1(),
            case.macro_f1,
            &format!("macro F1 of case {index}"),
        );
        assert_close(
            ours.matthews(),
            case.matthews,
            &format!("Matthews of case {index}"),
        );
    }
}

#[test]
fn answers_score_the_bleu_that_sacrebleu_has() {
    let cases = cases().bleu;
    assert!(cases.len() >= 24);
    for (index, case) in cases.iter().enumerate() {
        for row in &case.rows {
            assert_close(
                sentence_bleu(&row.answer, &row.references),
                row.bleu,
                &row.answer,
            );
        }
        let answers: Vec<_> = case.rows.iter().map(|row| row.answer.clone()).collect();
        let references: Vec<_> = case.rows.iter().map(|row| row.references.clone()).collect();
        let ours = corpus_bleu(&answers, &references).unwrap();
        assert_close(ours, case.bleu, &format!("BLEU of case {index}"));
    }
}

#[test]
fn answers_score_the_f1_that_squad_has() {
    let cases = cases().token_f1;
    assert!(cases.len() >= 40);
    for case in &cases {
        assert_close(
            token_f1(&case.answer, &case.reference),
            case.f1,
            &case.answer,
        );
    }
}
