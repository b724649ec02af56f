//! One row per label: chosen on dev, scored once on test, compared with the best.

use crate::error::ReportError;
use crate::group::{Group, groups};
use crate::metric::Metric;
use crate::notes;
use crate::record::{MemoryInfo, Record, Size};
use crate::stats::{Estimate, Paired, holm, mean, median};

/// What the records say, label by label.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The study's name.
    pub study: String,
    /// The question it asks.
    pub question: String,
    /// The metric it ranks by.
    pub metric: Metric,
    /// One row per label, in order of first appearance.
    pub rows: Vec<Row>,
    /// Index of the row with the best mean test score.
    pub best: Option<usize>,
    /// Every trial that did not end well.
    pub failures: Vec<Failure>,
    /// What a reader should know before trusting a number.
    pub notes: Vec<String>,
}

/// One label of the study.
#[derive(Clone, Debug)]
pub struct Row {
    /// The label: `LoRA r8`.
    pub label: String,
    /// The family it belongs to: `LoRA`.
    pub family: String,
    /// Registry kind: `lora`.
    pub kind: String,
    /// Its rank or bottleneck, if it has one.
    pub size: Option<Size>,
    /// Storage of the frozen weights.
    pub storage: String,
    /// The learning rate with the best mean dev score.
    pub learning_rate: Option<f64>,
    /// Dev score at that learning rate.
    pub dev: Option<Estimate>,
    /// Test score at that learning rate.
    pub test: Option<Estimate>,
    /// Trials of the label, at every learning rate.
    pub trials: usize,
    /// Those of them that did not end well.
    pub failed: usize,
    /// Parameters that were trained, the head included, if any trial got as far as counting.
    pub trainable: Option<u64>,
    /// `trainable` as a fraction of the base's parameters.
    pub share: Option<f64>,
    /// Bytes of what is saved after training.
    pub adapter_bytes: Option<u64>,
    /// Median over seeds of the median step time, in milliseconds.
    pub step_ms: Option<f64>,
    /// Median over seeds of the training throughput.
    pub tokens_per_s: Option<f64>,
    /// Memory of the seed with the highest measured peak.
    pub memory: Option<MemoryInfo>,
    /// Whether no other label is at least as good with at most as many trained parameters.
    pub pareto: bool,
    /// Comparison with the best label on the same test examples; absent for the best itself and
    /// where the examples are not the same.
    pub versus_best: Option<Paired>,
}

/// A trial that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The trial.
    pub id: String,
    /// `diverged`, `oom`, `failed` or `timeout`.
    pub status: &'static str,
    /// Why.
    pub reason: String,
}

impl Summary {
    /// Summarises records.
    ///
    /// # Errors
    /// If there are none, or if they do not all rank by one metric.
    pub fn of(records: &[Record]) -> Result<Self, ReportError> {
        let metric = metric_of(records)?;
        let groups = groups(records, &metric);
        Ok(Self::of_groups(records, &groups, metric))
    }

    pub(crate) fn of_groups(records: &[Record], groups: &[Group<'_>], metric: Metric) -> Self {
        let mut rows: Vec<Row> = groups.iter().map(row).collect();
        let best = best(&rows, &metric);
        mark_pareto(&mut rows, &metric);
        if let Some(best) = best {
            compare(&mut rows, groups, best);
        }
        let first = groups[0].first();
        Self {
            study: first.trial.study.clone(),
            question: first.trial.question.clone(),
            notes: notes::notes(records, groups, &rows, best),
            failures: records.iter().filter_map(failure).collect(),
            metric,
            rows,
            best,
        }
    }

    /// The rows from best to worst test score, those without one last.
    #[must_use]
    pub fn ranked(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| match (a.test, b.test) {
            (Some(a), Some(b)) if self.metric.higher_is_better => b.mean.total_cmp(&a.mean),
            (Some(a), Some(b)) => a.mean.total_cmp(&b.mean),
            (a, b) => b.is_some().cmp(&a.is_some()),
        });
        rows
    }
}

/// The one metric all records rank by.
pub(crate) fn metric_of(records: &[Record]) -> Result<Metric, ReportError> {
    let first = &records.first().ok_or(ReportError::NoRecords)?.trial;
    let named = |t: &crate::record::TrialInfo| {
        let direction = if t.higher_is_better {
            "higher"
        } else {
            "lower"
        };
        format!("{} ({direction} is better)", t.metric)
    };
    match records
        .iter()
        .map(|r| &r.trial)
        .find(|t| named(t) != named(first))
    {
        Some(other) => Err(ReportError::MixedMetrics {
            first_id: first.id.clone(),
            first: named(first),
            other_id: other.id.clone(),
            other: named(other),
        }),
        None => Ok(Metric {
            name: first.metric.clone(),
            higher_is_better: first.higher_is_better,
        }),
    }
}

fn row(group: &Group<'_>) -> Row {
    let trial = &group.first().trial;
    let rate = group.chosen.map(|i| &group.rates[i]);
    let runs = group.chosen_runs();
    let positive = |value: fn(&Record) -> f64| -> Option<f64> {
        let values: Vec<f64> = runs.iter().map(|r| value(r)).collect();
        median(&values).filter(|v| v.is_finite() && *v > 0.0)
    };
    // A trial that ran out of memory may have counted its parameters before.
    let counted = runs.first().copied().into_iter().chain([group.first()]);
    let budget = counted.map(|r| &r.budget).find(|b| b.base > 0);
    Row {
        label: trial.label.clone(),
        family: trial.family.clone(),
        kind: trial.kind.clone(),
        size: trial.size.clone(),
        storage: trial.storage.clone(),
        learning_rate: rate.map(|r| r.learning_rate),
        dev: rate.and_then(|r| Estimate::of(&r.scores("dev"))),
        test: rate.and_then(|r| Estimate::of(&r.scores("test"))),
        trials: group.trials(),
        failed: group.failures(),
        trainable: budget.map(|b| b.trainable),
        share: budget.map(|b| b.trainable as f64 / b.base as f64),
        adapter_bytes: runs.first().map(|r| r.budget.adapter_bytes),
        step_ms: positive(|r| r.time.step_ms_median),
        tokens_per_s: positive(|r| r.time.tokens_per_s),
        memory: runs
            .iter()
            .map(|r| &r.memory)
            .max_by_key(|m| m.measured_peak)
            .cloned(),
        pareto: false,
        versus_best: None,
    }
}

fn best(rows: &[Row], metric: &Metric) -> Option<usize> {
    let scored = rows
        .iter()
        .enumerate()
        .filter_map(|(i, row)| Some((i, row.test?.mean)));
    scored
        .reduce(|a, b| if metric.better(b.1, a.1) { b } else { a })
        .map(|(i, _)| i)
}

fn mark_pareto(rows: &mut [Row], metric: &Metric) {
    let points: Vec<_> = rows
        .iter()
        .map(|r| r.trainable.zip(r.test.map(|t| t.mean)))
        .collect();
    for (row, point) in rows.iter_mut().zip(&points) {
        let Some((size, score)) = *point else {
            continue;
        };
        row.pareto = !points.iter().flatten().any(|&(other_size, other)| {
            let no_worse = other_size <= size && !metric.better(score, other);
            no_worse && (other_size < size || metric.better(other, score))
        });
    }
}

/// Compares every row with the best where both answered the same test examples.
fn compare(rows: &mut [Row], groups: &[Group<'_>], best: usize) {
    let reference = example_scores(groups[best].chosen_runs());
    let Some((questions, reference)) = reference else {
        return;
    };
    for (i, group) in groups.iter().enumerate().filter(|(i, _)| *i != best) {
        rows[i].versus_best = example_scores(group.chosen_runs())
            .filter(|(asked, _)| *asked == questions)
            .and_then(|(_, scores)| Paired::of(&scores, &reference));
    }
    let compared: Vec<_> = rows
        .iter_mut()
        .filter_map(|r| r.versus_best.as_mut())
        .collect();
    let adjusted = holm(&compared.iter().map(|c| c.p).collect::<Vec<_>>());
    for (comparison, p) in compared.into_iter().zip(adjusted) {
        comparison.p_holm = p;
    }
}

/// The references, and the score of every example as a mean over seeds; `None` if the seeds did not
/// answer the same examples.
pub(crate) fn example_scores<'a>(runs: &[&'a Record]) -> Option<(Vec<&'a str>, Vec<f64>)> {
    let asked = |r: &'a Record| r.predictions.iter().map(|p| p.expected.as_str()).collect();
    let questions: Vec<&str> = asked(runs.first()?);
    if questions.is_empty() || runs.iter().any(|&r| questions != asked(r)) {
        return None;
    }
    let score = |i: usize| {
        mean(
            &runs
                .iter()
                .map(|r| r.predictions[i].score)
                .collect::<Vec<_>>(),
        )
    };
    let scores = (0..questions.len())
        .map(score)
        .collect::<Option<Vec<_>>>()?;
    scores
        .iter()
        .all(|s| s.is_finite())
        .then_some((questions, scores))
}

fn failure(record: &Record) -> Option<Failure> {
    (!record.status.is_ok()).then(|| Failure {
        id: record.trial.id.clone(),
        status: record.status.name(),
        reason: record.status.reason().to_owned(),
    })
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
