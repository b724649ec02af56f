//! `runs.csv`: one row per trial, one column per variable, nothing aggregated.

use std::collections::BTreeSet;

use crate::error::ReportError;
use crate::format;
use crate::record::Record;

/// A column: its name and its value in a record, empty where there is none.
type Column = (String, Box<dyn Fn(&Record) -> String>);

/// The tidy table of all trials as CSV.
///
/// # Errors
/// If a row cannot be written.
pub fn runs_csv(records: &[Record]) -> Result<Vec<u8>, ReportError> {
    let failed = |source| ReportError::Csv {
        file: "runs.csv",
        source,
    };
    let columns = columns(records);
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer
        .write_record(columns.iter().map(|(name, _)| name))
        .map_err(failed)?;
    for record in records {
        writer
            .write_record(columns.iter().map(|(_, value)| value(record)))
            .map_err(failed)?;
    }
    writer
        .into_inner()
        .map_err(|e| failed(e.into_error().into()))
}

fn columns(records: &[Record]) -> Vec<Column> {
    [
        trial(),
        environment(),
        data(records),
        budget(),
        time(),
        memory(),
        scores(records),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn column(name: &str, value: impl Fn(&Record) -> String + 'static) -> Column {
    (name.to_owned(), Box::new(value))
}

fn trial() -> Vec<Column> {
    vec![
        column("id", |r| r.trial.id.clone()),
        column("hash", |r| r.trial.hash.clone()),
        column("study", |r| r.trial.study.clone()),
        column("label", |r| r.trial.label.clone()),
        column("family", |r| r.trial.family.clone()),
        column("kind", |r| r.trial.kind.clone()),
        column("size_name", |r| {
            r.trial
                .size
                .as_ref()
                .map_or(String::new(), |s| s.name.clone())
        }),
        column("size", |r| {
            r.trial
                .size
                .as_ref()
                .map_or(String::new(), |s| s.value.to_string())
        }),
        column("storage", |r| r.trial.storage.clone()),
        column("learning_rate", |r| format::rate(r.trial.learning_rate)),
        column("seed", |r| r.trial.seed.to_string()),
        column("metric", |r| r.trial.metric.clone()),
        column("higher_is_better", |r| r.trial.higher_is_better.to_string()),
        column("status", |r| r.status.name().to_owned()),
        column("reason", |r| r.status.reason().to_owned()),
    ]
}

fn environment() -> Vec<Column> {
    vec![
        column("version", |r| r.environment.version.clone()),
        column("commit", |r| r.environment.commit.clone()),
        column("burn", |r| r.environment.burn.clone()),
        column("rustc", |r| r.environment.rustc.clone()),
        column("os", |r| r.environment.os.clone()),
        column("cpu", |r| r.environment.cpu.clone()),
        column("device", |r| r.environment.device.clone()),
        column("threads", |r| r.environment.threads.to_string()),
        column("started", |r| r.environment.started.clone()),
    ]
}

fn data(records: &[Record]) -> Vec<Column> {
    let splits: BTreeSet<_> = records
        .iter()
        .flat_map(|r| r.data.keys().cloned())
        .collect();
    let of = |split: String| {
        let (first, second) = (split.clone(), split.clone());
        [
            column(&format!("data_{split}_examples"), move |r| {
                r.data
                    .get(&first)
                    .map_or(String::new(), |d| d.examples.to_string())
            }),
            column(&format!("data_{split}_sha256"), move |r| {
                r.data
                    .get(&second)
                    .map_or(String::new(), |d| d.sha256.clone())
            }),
        ]
    };
    splits.into_iter().flat_map(of).collect()
}

fn budget() -> Vec<Column> {
    vec![
        column("base_params", |r| r.budget.base.to_string()),
        column("trainable_params", |r| r.budget.trainable.to_string()),
        column("head_params", |r| r.budget.head.to_string()),
        column("base_bytes", |r| r.budget.base_bytes.to_string()),
        column("adapter_bytes", |r| r.budget.adapter_bytes.to_string()),
    ]
}

fn time() -> Vec<Column> {
    vec![
        column("train_s", |r| number(r.time.train_s)),
        column("eval_s", |r| number(r.time.eval_s)),
        column("total_s", |r| number(r.time.total_s)),
        column("steps", |r| r.time.steps.to_string()),
        column("tokens", |r| r.time.tokens.to_string()),
        column("tokens_per_s", |r| number(r.time.tokens_per_s)),
        column("step_ms_median", |r| number(r.time.step_ms_median)),
        column("step_ms_p95", |r| number(r.time.step_ms_p95)),
    ]
}

fn memory() -> Vec<Column> {
    vec![
        column("memory_base", |r| r.memory.base.to_string()),
        column("memory_adapter", |r| r.memory.adapter.to_string()),
        column("memory_gradients", |r| r.memory.gradients.to_string()),
        column("memory_optimizer", |r| r.memory.optimizer.to_string()),
        column("memory_predicted_peak", |r| {
            r.memory.predicted_peak.to_string()
        }),
        column("memory_measured_peak", |r| {
            r.memory.measured_peak.to_string()
        }),
    ]
}

fn scores(records: &[Record]) -> Vec<Column> {
    let names: BTreeSet<(String, String)> = records
        .iter()
        .flat_map(|r| &r.scores)
        .flat_map(|(split, metrics)| metrics.keys().map(|m| (split.clone(), m.clone())))
        .collect();
    let of = |(split, metric): (String, String)| {
        column(&format!("{split}_{metric}"), move |r: &Record| {
            let value = r
                .scores
                .get(&split)
                .and_then(|metrics| metrics.get(&metric));
            value.map_or(String::new(), |v| number(*v))
        })
    };
    let last_loss = |r: &Record| {
        let loss = r
            .curve
            .iter()
            .rev()
            .find_map(|p| p.train_loss.filter(|l| l.is_finite()));
        loss.map_or(String::new(), number)
    };
    let mut columns = vec![column("last_train_loss", last_loss)];
    columns.extend(names.into_iter().map(of));
    columns
}

/// Full precision; empty where the number is not one.
fn number(value: f64) -> String {
    if value.is_finite() {
        value.to_string()
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{diverged, failed, record};

    #[test]
    fn there_is_one_row_per_trial_with_every_score_as_a_column() {
        let mut records = vec![record("LoRA r8", 1e-3, 1, 0.75, 0.5)];
        records[0]
            .scores
            .get_mut("test")
            .unwrap()
            .insert("f1".into(), 0.25);
        records.push(failed("Full", 1e-3, 2, diverged()));
        let bytes = runs_csv(&records).unwrap();
        let mut reader = ::csv::Reader::from_reader(bytes.as_slice());
        let header = reader.headers().unwrap().clone();
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        let cell = |row: usize, name: &str| {
            let column = header.iter().position(|h| h == name);
            rows[row][column.unwrap_or_else(|| panic!("no column `{name}`"))].to_owned()
        };
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (cell(0, "dev_accuracy"), cell(0, "test_accuracy")),
            ("0.75".into(), "0.5".into())
        );
        assert_eq!(
            (cell(0, "test_f1"), cell(1, "test_f1")),
            ("0.25".into(), String::new())
        );
        assert_eq!(
            (cell(0, "size_name"), cell(0, "size")),
            ("rank".into(), "8".into())
        );
        assert_eq!(
            (cell(0, "trainable_params"), cell(0, "seed")),
            ("8000".into(), "1".into())
        );
        assert_eq!(cell(0, "data_test_examples"), "4");
        assert_eq!(
            (cell(1, "status"), cell(1, "size")),
            ("diverged".into(), String::new())
        );
        assert_eq!(cell(1, "reason"), "loss is NaN at step 3");
        assert_eq!(cell(0, "learning_rate"), "1e-3");
    }
}
