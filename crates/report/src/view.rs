//! The summary as text cells, ready for a template; shared by the Markdown and the HTML page.

use serde::Serialize;

use crate::by_task::ByTask;
use crate::format;
use crate::group::Group;
use crate::plots::Plots;
use crate::record::{Record, Sample};
use crate::setup::setup;
use crate::stats::Paired;
use crate::summary::{Row, Summary};

/// Samples shown per label.
const SAMPLES: usize = 4;
/// Labels listed by name in a sentence.
const NAMED: usize = 8;

/// Everything a page shows.
#[derive(Serialize)]
pub(crate) struct View {
    study: String,
    question: String,
    metric: String,
    metric_title: String,
    higher_is_better: bool,
    best: Option<String>,
    tied: String,
    setup: Vec<(&'static str, String)>,
    rows: Vec<RowView>,
    by_task: Option<ByTask>,
    failures: Vec<FailureView>,
    notes: Vec<String>,
    plots: Vec<PlotView>,
    skipped: Vec<(&'static str, String)>,
    samples: Vec<SamplesView>,
    runs: Vec<RunView>,
}

/// A cell: what is read, and what it sorts by.
#[derive(Serialize)]
pub(crate) struct Cell {
    text: String,
    sort: String,
}

#[derive(Serialize)]
struct RowView {
    label: String,
    best: bool,
    pareto: bool,
    score: Cell,
    interval: String,
    dev: Cell,
    seeds: usize,
    learning_rate: Cell,
    trainable: Cell,
    share: Cell,
    saved: Cell,
    step_ms: Cell,
    tokens_per_s: Cell,
    peak: Cell,
    failed: usize,
    trials: usize,
    difference: Cell,
    p: Cell,
    significant: bool,
}

#[derive(Serialize)]
struct FailureView {
    id: String,
    status: &'static str,
    reason: String,
}

#[derive(Serialize)]
struct PlotView {
    name: &'static str,
    caption: &'static str,
    svg: String,
}

#[derive(Serialize)]
struct SamplesView {
    label: String,
    seed: u64,
    samples: Vec<Sample>,
}

#[derive(Serialize)]
struct RunView {
    id: String,
    label: String,
    learning_rate: Cell,
    seed: u64,
    status: &'static str,
    dev: Cell,
    test: Cell,
    time: Cell,
    started: String,
}

impl View {
    pub(crate) fn of(
        records: &[Record],
        summary: &Summary,
        groups: &[Group<'_>],
        plots: &Plots,
    ) -> Self {
        let failure = |f: &crate::summary::Failure| FailureView {
            id: f.id.clone(),
            status: f.status,
            reason: f.reason.clone(),
        };
        Self {
            study: summary.study.clone(),
            question: summary.question.clone(),
            metric: summary.metric.title(),
            metric_title: summary.metric.axis("Test"),
            higher_is_better: summary.metric.higher_is_better,
            best: summary.best.map(|i| summary.rows[i].label.clone()),
            tied: tied(summary),
            setup: setup(records),
            rows: summary
                .ranked()
                .into_iter()
                .map(|row| RowView::of(row, summary))
                .collect(),
            by_task: ByTask::of(summary, groups),
            failures: summary.failures.iter().map(failure).collect(),
            notes: summary.notes.clone(),
            plots: plots
                .drawn
                .iter()
                .map(|p| PlotView {
                    name: p.name,
                    caption: p.caption,
                    svg: p.svg.clone(),
                })
                .collect(),
            skipped: plots.skipped.clone(),
            samples: groups.iter().filter_map(samples).collect(),
            runs: records.iter().map(|r| RunView::of(r, summary)).collect(),
        }
    }
}

impl Cell {
    /// A number and its text; a dash where there is none, which sorts last.
    pub(crate) fn of(value: Option<f64>, text: impl FnOnce(f64) -> String) -> Self {
        let missing = || Self {
            text: "–".to_owned(),
            sort: String::new(),
        };
        value.map_or_else(missing, |v| Self {
            text: text(v),
            sort: v.to_string(),
        })
    }

    fn count(value: Option<u64>, text: impl FnOnce(u64) -> String) -> Self {
        let shown = value.map(text).unwrap_or_default();
        Self::of(value.map(|v| v as f64), |_| shown)
    }
}

impl RowView {
    fn of(row: &Row, summary: &Summary) -> Self {
        let metric = &summary.metric;
        let estimate = |e: Option<crate::stats::Estimate>| {
            let text = e.map(|e| summary.mean_and_sd(&e)).unwrap_or_default();
            Cell::of(e.map(|e| metric.scaled(e.mean)), |_| text)
        };
        let interval = row.test.and_then(|e| e.interval);
        let interval = interval.map(|(a, b)| {
            format!(
                "{} to {}",
                metric.number(metric.within(a)),
                metric.number(metric.within(b))
            )
        });
        let versus = row.versus_best;
        let difference = |v: Paired| {
            let (low, high) = v.interval;
            let [d, low, high] = [v.difference, low, high].map(|x| signed(metric.scaled(x)));
            format!("{d} ({low} to {high})")
        };
        Self {
            label: row.label.clone(),
            best: summary
                .best
                .is_some_and(|i| summary.rows[i].label == row.label),
            pareto: row.pareto,
            score: estimate(row.test),
            interval: interval.unwrap_or_else(|| "–".to_owned()),
            dev: estimate(row.dev),
            seeds: row.test.map_or(0, |e| e.seeds),
            learning_rate: Cell::of(row.learning_rate, format::rate),
            trainable: Cell::count(row.trainable, format::count),
            share: Cell::of(row.share, format::percent),
            saved: Cell::count(row.adapter_bytes.filter(|b| *b > 0), format::bytes),
            step_ms: Cell::of(row.step_ms, format::significant),
            tokens_per_s: Cell::of(row.tokens_per_s, |t| format::count(t.round() as u64)),
            peak: Cell::count(
                row.memory
                    .as_ref()
                    .map(|m| m.measured_peak)
                    .filter(|p| *p > 0),
                format::bytes,
            ),
            failed: row.failed,
            trials: row.trials,
            difference: Cell::of(versus.map(|v| metric.scaled(v.difference)), |_| {
                versus.map(difference).unwrap_or_default()
            }),
            p: Cell::of(versus.map(|v| v.p_holm), format::p_value),
            significant: versus.is_some_and(|v| v.is_significant()),
        }
    }
}

impl RunView {
    fn of(record: &Record, summary: &Summary) -> Self {
        let score = |split| {
            let value = record.score(split).map(|v| summary.metric.scaled(v));
            let text = record.score(split).map(|v| summary.metric.number(v));
            Cell::of(value, |_| text.unwrap_or_default())
        };
        Self {
            id: record.trial.id.clone(),
            label: record.trial.label.clone(),
            learning_rate: Cell::of(Some(record.trial.learning_rate), format::rate),
            seed: record.trial.seed,
            status: record.status.name(),
            dev: score("dev"),
            test: score("test"),
            time: Cell::of(Some(record.time.total_s), format::seconds),
            started: record.environment.started.clone(),
        }
    }
}

/// The labels that cannot be told from the best, the first few by name.
fn tied(summary: &Summary) -> String {
    let alike = |row: &&&Row| row.versus_best.is_some_and(|v| !v.is_significant());
    let ranked = summary.ranked();
    let labels: Vec<&str> = ranked
        .iter()
        .filter(alike)
        .map(|row| row.label.as_str())
        .collect();
    let (named, others) = labels.split_at(labels.len().min(NAMED));
    match others.len() {
        0 => named.join(", "),
        n => format!("{} and {n} more", named.join(", ")),
    }
}

/// Samples of the label's first seed at the chosen learning rate.
fn samples(group: &Group<'_>) -> Option<SamplesView> {
    let run = group.chosen_runs().iter().find(|r| !r.samples.is_empty())?;
    let samples = run.samples.iter().take(SAMPLES).cloned().collect();
    Some(SamplesView {
        label: group.label.to_owned(),
        seed: run.trial.seed,
        samples,
    })
}

/// With its sign; a true minus, as wide as the plus.
fn signed(value: f64) -> String {
    let number = format!("{:.2}", value.abs());
    match value {
        v if v < 0.0 && number != "0.00" => format!("−{number}"),
        _ if number == "0.00" => number,
        _ => format!("+{number}"),
    }
}
