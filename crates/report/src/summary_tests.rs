//! The summary against values worked out by hand.

use super::*;
use crate::fixture::{diverged, failed, predictions, record};

fn seeds(label: &str, lr: f64, dev: f64, tests: &[f64]) -> Vec<Record> {
    tests
        .iter()
        .zip(1..)
        .map(|(&test, seed)| record(label, lr, seed, dev, test))
        .collect()
}

fn row<'a>(summary: &'a Summary, label: &str) -> &'a Row {
    summary.rows.iter().find(|r| r.label == label).unwrap()
}

#[test]
fn a_row_is_the_test_score_at_the_rate_chosen_on_dev() {
    let mut records = seeds("LoRA r8", 1e-3, 0.85, &[0.80, 0.82, 0.84]);
    records.extend(seeds("LoRA r8", 1e-4, 0.75, &[0.99, 0.99, 0.99]));
    records.push(failed("LoRA r8", 1e-2, 1, diverged()));
    let summary = Summary::of(&records).unwrap();
    let row = row(&summary, "LoRA r8");
    let test = row.test.unwrap();
    assert_eq!(row.learning_rate, Some(1e-3));
    assert!((test.mean - 0.82).abs() < 1e-12 && (test.sd.unwrap() - 0.02).abs() < 1e-12);
    assert_eq!((test.seeds, row.trials, row.failed), (3, 7, 1));
    assert_eq!((row.trainable, row.share), (Some(8000), Some(0.008)));
    // Seeds 1, 2, 3 took 21, 22, 23 ms and the third had the highest peak.
    assert_eq!((row.step_ms, row.tokens_per_s), (Some(22.0), Some(420.0)));
    assert_eq!(row.memory.as_ref().unwrap().measured_peak, (3 << 20) + 3);
    assert_eq!(summary.failures[0].status, "diverged");
    assert_eq!(summary.failures[0].reason, "loss is NaN at step 3");
}

#[test]
fn the_pareto_front_keeps_what_nothing_smaller_beats() {
    let mut records = Vec::new();
    for (label, test) in [
        ("LoRA r1", 0.7),
        ("LoRA r2", 0.9),
        ("LoRA r4", 0.8),
        ("LoRA r8", 0.95),
    ] {
        records.push(record(label, 1e-3, 1, 0.5, test));
    }
    let summary = Summary::of(&records).unwrap();
    let front: Vec<_> = summary.rows.iter().map(|r| r.pareto).collect();
    assert_eq!(front, [true, true, false, true]);
    assert_eq!(summary.best, Some(3));
}

#[test]
fn of_two_labels_with_equal_score_only_the_smaller_is_on_the_front() {
    let records = [
        record("LoRA r4", 1e-3, 1, 0.5, 0.9),
        record("LoRA r8", 1e-3, 1, 0.5, 0.9),
    ];
    let summary = Summary::of(&records).unwrap();
    assert_eq!(
        summary.rows.iter().map(|r| r.pareto).collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn where_lower_is_better_the_smallest_score_wins() {
    let mut records = [
        record("LoRA r4", 1e-3, 1, 0.5, 3.0),
        record("LoRA r8", 1e-3, 1, 0.5, 4.0),
    ];
    for r in &mut records {
        r.trial.higher_is_better = false;
    }
    let summary = Summary::of(&records).unwrap();
    assert_eq!(summary.best, Some(0));
    assert_eq!(summary.ranked()[0].label, "LoRA r4");
    assert_eq!(
        summary.rows.iter().map(|r| r.pareto).collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn every_label_is_compared_with_the_best_on_the_same_examples() {
    let mut best = record("LoRA r8", 1e-3, 1, 0.5, 1.0);
    let mut worse = record("LoRA r4", 1e-3, 1, 0.5, 0.5);
    let mut other = record("LoRA r2", 1e-3, 1, 0.5, 0.4);
    best.predictions = predictions(&[1.0; 40]);
    worse.predictions = predictions(&[vec![1.0; 20], vec![0.0; 20]].concat());
    other.predictions = predictions(&[1.0; 39]);
    let summary = Summary::of(&[best, worse, other]).unwrap();
    assert_eq!(row(&summary, "LoRA r8").versus_best, None);
    let compared = row(&summary, "LoRA r4").versus_best.unwrap();
    assert_eq!((compared.difference, compared.examples), (-0.5, 40));
    assert!(compared.is_significant());
    assert_eq!(row(&summary, "LoRA r2").versus_best, None);
    assert!(
        summary.notes.iter().any(|n| n.contains("`LoRA r2`")),
        "{:?}",
        summary.notes
    );
}

#[test]
fn examples_are_averaged_over_seeds_before_they_are_compared() {
    let mut runs = seeds("LoRA r8", 1e-3, 0.5, &[0.5, 0.5]);
    runs[0].predictions = predictions(&[1.0, 0.0, 1.0]);
    runs[1].predictions = predictions(&[1.0, 1.0, 0.0]);
    let runs: Vec<&Record> = runs.iter().collect();
    assert_eq!(example_scores(&runs).unwrap().1, [1.0, 0.5, 0.5]);
}

#[test]
fn a_study_of_failures_alone_has_rows_but_no_best() {
    let records = [
        failed("LoRA r8", 1e-3, 1, diverged()),
        failed("Full", 1e-3, 1, diverged()),
    ];
    let summary = Summary::of(&records).unwrap();
    assert_eq!(
        (summary.rows.len(), summary.best, summary.failures.len()),
        (2, None, 2)
    );
    assert!(summary.rows.iter().all(|r| r.test.is_none() && !r.pareto));
}

#[test]
fn no_records_and_mixed_metrics_are_clear_errors() {
    let none = Summary::of(&[]).unwrap_err().to_string();
    assert!(none.contains("run at least one trial"), "{none}");
    let mut records = seeds("LoRA r8", 1e-3, 0.5, &[0.5, 0.5]);
    records[1].trial.metric = "f1".into();
    let mixed = Summary::of(&records).unwrap_err().to_string();
    assert!(
        mixed.contains("`accuracy (higher is better)`") && mixed.contains("`f1"),
        "{mixed}"
    );
}

#[test]
fn a_learning_rate_at_the_edge_of_the_grid_is_pointed_out() {
    let mut records = seeds("LoRA r8", 1e-3, 0.85, &[0.8, 0.8]);
    records.extend(seeds("LoRA r8", 1e-4, 0.75, &[0.8, 0.8]));
    let summary = Summary::of(&records).unwrap();
    assert!(
        summary.notes.iter().any(|n| n.contains("edge")),
        "{:?}",
        summary.notes
    );
    records.extend(seeds("LoRA r8", 1e-2, 0.65, &[0.8, 0.8]));
    let summary = Summary::of(&records).unwrap();
    assert!(
        !summary.notes.iter().any(|n| n.contains("edge")),
        "{:?}",
        summary.notes
    );
}
