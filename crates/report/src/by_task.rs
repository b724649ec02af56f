//! The scores of a mixture task by task: means over seeds at the learning rate that dev chose.

use serde::Serialize;

use crate::group::Group;
use crate::record::Record;
use crate::stats::Estimate;
use crate::summary::Summary;
use crate::view::Cell;

/// A table of the labels' test scores, a column for every task.
#[derive(Serialize)]
pub(crate) struct ByTask {
    /// Names of the tasks.
    tasks: Vec<String>,
    /// The labels, best first.
    rows: Vec<TasksRow>,
}

#[derive(Serialize)]
struct TasksRow {
    label: String,
    best: bool,
    /// Over the tasks.
    mean: Cell,
    scores: Vec<Cell>,
    seeds: usize,
}

impl ByTask {
    /// The table; none where the study is of one task.
    pub(crate) fn of(summary: &Summary, groups: &[Group<'_>]) -> Option<Self> {
        let runs = groups.iter().flat_map(Group::chosen_runs);
        let mut tasks: Vec<String> = runs.flat_map(|run| run.tasks()).map(String::from).collect();
        tasks.sort();
        tasks.dedup();
        if tasks.is_empty() {
            return None;
        }
        let ranked = summary.ranked().into_iter();
        let rows = ranked.map(|row| {
            let group = groups.iter().find(|group| group.label == row.label);
            let runs = group.map_or(&[][..], Group::chosen_runs);
            let score = |task: &String| cell(summary, estimate(runs, task));
            let best = summary.best.map(|index| &summary.rows[index].label);
            TasksRow {
                label: row.label.clone(),
                best: best == Some(&row.label),
                mean: cell(summary, row.test),
                scores: tasks.iter().map(score).collect(),
                seeds: row.test.map_or(0, |test| test.seeds),
            }
        });
        let rows = rows.collect();
        Some(Self { tasks, rows })
    }
}

fn estimate(runs: &[&Record], task: &str) -> Option<Estimate> {
    let scores = runs.iter().filter_map(|run| run.task_score("test", task));
    Estimate::of(&scores.collect::<Vec<_>>())
}

fn cell(summary: &Summary, estimate: Option<Estimate>) -> Cell {
    let text = estimate.map(|e| summary.mean_and_sd(&e));
    let value = estimate.map(|e| summary.metric.scaled(e.mean));
    Cell::of(value, |_| text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{diverged, failed, record};
    use crate::group::groups;
    use crate::page::{html, markdown};
    use crate::plots::{self, Study};
    use crate::view::View;

    /// A record of a mixture of two tasks, whose mean is the score on test.
    fn mixed(label: &str, rate: f64, seed: u64, scores: [f64; 2]) -> Record {
        let mean = (scores[0] + scores[1]) / 2.0;
        let mut record = record(label, rate, seed, mean, mean);
        let test = record.scores.get_mut("test").unwrap();
        // Other metrics and losses of a task stand beside the one that ranks.
        test.insert("loss/polar".into(), 3.0);
        test.insert("accuracy/nli".into(), scores[0]);
        test.insert("accuracy/polar".into(), scores[1]);
        record
    }

    fn view(records: &[Record]) -> View {
        let summary = Summary::of(records).unwrap();
        let groups = groups(records, &summary.metric);
        let study = Study {
            summary: &summary,
            groups: &groups,
        };
        let plots = plots::draw(study).unwrap();
        View::of(records, &summary, &groups, &plots)
    }

    fn records() -> Vec<Record> {
        vec![
            mixed("LoRA r4", 1e-3, 1, [0.5, 0.7]),
            mixed("LoRA r4", 1e-3, 2, [0.6, 0.8]),
            // Worse on dev, so that it is not shown.
            mixed("LoRA r4", 1e-4, 1, [0.1, 0.1]),
            mixed("Full", 1e-3, 1, [0.9, 0.75]),
            failed("Head", 1e-3, 1, diverged()),
        ]
    }

    #[test]
    fn the_scores_of_every_task_are_means_over_the_seeds_of_the_chosen_rate() {
        let page = markdown(&view(&records())).unwrap();
        let table = page.split("## Task by task\n\n").nth(1).unwrap();
        let lines: Vec<_> = table.lines().take(5).collect();
        assert_eq!(
            lines,
            [
                "| label | mean | nli | polar | seeds |",
                "|:--|--:|--:|--:|--:|",
                "| **Full** | 82.50 | 90.00 | 75.00 | 1 |",
                "| LoRA r4 | 65.00 ± 7.07 | 55.00 ± 7.07 | 75.00 ± 7.07 | 2 |",
                "| Head | – | – | – | 0 |",
            ]
        );
    }

    #[test]
    fn the_html_page_has_the_table_and_a_link_to_it() {
        let page = html(&view(&records())).unwrap();
        assert!(page.contains("<a href=\"#tasks\">Tasks</a>"));
        let table = page.split("<section id=\"tasks\">").nth(1).unwrap();
        let table = table.split("</section>").next().unwrap();
        assert!(table.contains("<th>nli</th><th>polar</th>"), "{table}");
        assert!(table.contains("data-sort=\"90\">90.00</td>"), "{table}");
        assert_eq!(table.matches("<tr").count(), 4);
    }

    #[test]
    fn a_study_of_one_task_has_no_such_table() {
        let view = view(&[record("LoRA r8", 1e-3, 1, 0.5, 0.5)]);
        assert!(!markdown(&view).unwrap().contains("Task by task"));
        assert!(!html(&view).unwrap().contains("id=\"tasks\""));
    }
}
