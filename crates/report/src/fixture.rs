//! Small records for the tests of this crate.

use std::collections::BTreeMap;

use crate::record::{
    Budget, CurvePoint, DataInfo, Environment, MemoryInfo, Prediction, Record, SCHEMA, Size,
    Status, TimeInfo, TrialInfo,
};

/// A trial that ended well: its label (`LoRA r8`: a last word with digits is its size), learning
/// rate, seed, and accuracy on dev and test.
pub(crate) fn record(label: &str, lr: f64, seed: u64, dev: f64, test: f64) -> Record {
    let id = format!(
        "{}--lr{lr:e}--s{seed}",
        label.to_lowercase().replace(' ', "-")
    );
    let score = |value: f64| BTreeMap::from([("accuracy".to_owned(), value)]);
    Record {
        schema: SCHEMA,
        trial: trial(&id, label, lr, seed),
        status: Status::Ok,
        environment: Environment {
            device: "cpu".into(),
            threads: 2,
            started: format!("2025-01-01T00:00:{seed:02}Z"),
            ..Environment::default()
        },
        data: BTreeMap::from([(
            "test".into(),
            DataInfo {
                sha256: "ab".into(),
                examples: 4,
            },
        )]),
        budget: Budget {
            base: 1_000_000,
            trainable: 1000 * size(label).map_or(1, |s| s.value),
            ..Budget::default()
        },
        time: TimeInfo {
            step_ms_median: 20.0 + seed as f64,
            tokens_per_s: 400.0 + 10.0 * seed as f64,
            ..TimeInfo::default()
        },
        memory: MemoryInfo {
            base: 1 << 20,
            adapter: 1 << 10,
            gradients: 1 << 10,
            optimizer: 1 << 11,
            predicted_peak: 3 << 20,
            measured_peak: (3 << 20) + seed,
        },
        curve: (1..=20)
            .map(|step| point(step, 1.0 - step as f64 / 32.0))
            .collect(),
        scores: BTreeMap::from([("dev".into(), score(dev)), ("test".into(), score(test))]),
        predictions: predictions(&[1.0, 1.0, 0.0, 1.0]),
        samples: Vec::new(),
        warnings: Vec::new(),
    }
}

/// The same trial, ended with `status` and without scores.
pub(crate) fn failed(label: &str, lr: f64, seed: u64, status: Status) -> Record {
    let mut record = record(label, lr, seed, 0.0, 0.0);
    record.status = status;
    record.scores.clear();
    record.predictions.clear();
    record
}

/// A loss that stopped being finite.
pub(crate) fn diverged() -> Status {
    Status::Diverged {
        reason: "loss is NaN at step 3".into(),
    }
}

/// One prediction per score.
pub(crate) fn predictions(scores: &[f64]) -> Vec<Prediction> {
    let one = |(i, &score): (usize, &f64)| Prediction {
        predicted: "yes".into(),
        expected: format!("answer {i}"),
        score,
    };
    scores.iter().enumerate().map(one).collect()
}

fn point(step: u64, loss: f64) -> CurvePoint {
    CurvePoint {
        step,
        epoch: step as f64 / 8.0,
        train_loss: Some(loss),
        learning_rate: 1e-3,
        dev: None,
    }
}

fn size(label: &str) -> Option<Size> {
    let digits: String = label.chars().filter(char::is_ascii_digit).collect();
    let value = digits.parse().ok()?;
    Some(Size {
        name: "rank".into(),
        value,
    })
}

fn trial(id: &str, label: &str, lr: f64, seed: u64) -> TrialInfo {
    let family = label.split(' ').next().unwrap_or_default();
    TrialInfo {
        id: id.to_owned(),
        hash: format!("{:0>12}ffff", format!("{:x}", hash(id))),
        study: "study".into(),
        question: "Which is better?".into(),
        label: label.to_owned(),
        family: family.to_owned(),
        kind: family.to_lowercase(),
        size: size(label),
        storage: "f32".into(),
        learning_rate: lr,
        seed,
        metric: "accuracy".into(),
        higher_is_better: true,
        config: serde_json::json!({ "seed": seed }),
    }
}

/// FNV-1a, kept to 48 bits so that it fills the part of a hash that goes into a file name.
fn hash(text: &str) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step) & 0xffff_ffff_ffff
}
