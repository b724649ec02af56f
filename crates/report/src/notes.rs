//! What a reader should know before trusting a number: said by the program, not left to be noticed.

use std::collections::{BTreeMap, BTreeSet};

use crate::format;
use crate::group::{Group, shared_seeds};
use crate::record::Record;
use crate::summary::{Row, example_scores};

/// All notes, most serious first.
pub(crate) fn notes(
    records: &[Record],
    groups: &[Group<'_>],
    rows: &[Row],
    best: Option<usize>,
) -> Vec<String> {
    let found = [
        different_data(records),
        warnings(records),
        repeated_trials(groups),
        different_machines(records),
        no_dev(groups),
        few_seeds(groups),
        tuned_on_fewer_seeds(groups),
        edge_of_grid(groups),
        not_compared(groups, rows, best),
    ];
    found.into_iter().flatten().collect()
}

fn different_data(records: &[Record]) -> Option<String> {
    let mut seen: BTreeMap<&str, BTreeSet<(&str, usize)>> = BTreeMap::new();
    for (split, data) in records.iter().flat_map(|r| &r.data) {
        seen.entry(split)
            .or_default()
            .insert((&data.sha256, data.examples));
    }
    let splits = names(
        seen.iter()
            .filter(|(_, s)| s.len() > 1)
            .map(|(name, _)| *name),
    )?;
    Some(format!(
        "The trials did not all use the same data ({splits}): scores do not compare."
    ))
}

fn warnings(records: &[Record]) -> Option<String> {
    let warnings: BTreeSet<_> = records.iter().flat_map(|r| &r.warnings).collect();
    let list = warnings.into_iter().cloned().collect::<Vec<_>>().join("; ");
    (!list.is_empty()).then(|| format!("The trials warn: {list}."))
}

fn repeated_trials(groups: &[Group<'_>]) -> Option<String> {
    let repeated = groups.iter().filter(|group| {
        group.rates.iter().any(|rate| {
            let seeds: BTreeSet<_> = rate.ok.iter().map(|r| r.trial.seed).collect();
            seeds.len() < rate.ok.len()
        })
    });
    let labels = names(repeated.map(|g| g.label))?;
    Some(format!(
        "One seed was run with more than one configuration, so the spread mixes both: {labels}. \
         Give the configurations labels of their own."
    ))
}

fn different_machines(records: &[Record]) -> Option<String> {
    let ok = records
        .iter()
        .filter(|r| r.status.is_ok())
        .map(|r| &r.environment);
    let machines: BTreeSet<_> = ok
        .map(|e| format!("{}, {}, {} threads", e.device, e.cpu, e.threads))
        .collect();
    let list = machines.iter().cloned().collect::<Vec<_>>().join("; ");
    (machines.len() > 1).then(|| format!("Times compare only on one machine; these were: {list}."))
}

fn no_dev(groups: &[Group<'_>]) -> Option<String> {
    let blind = groups.iter().filter(|g| {
        g.rates.iter().filter(|r| !r.ok.is_empty()).count() > 1
            && g.rates.iter().all(|r| r.dev().is_none())
    });
    let labels = names(blind.map(|g| g.label))?;
    Some(format!(
        "Without a dev score the learning rate could not be chosen; the smallest was taken: \
         {labels}."
    ))
}

fn few_seeds(groups: &[Group<'_>]) -> Option<String> {
    let most = groups
        .iter()
        .map(|g| g.chosen_runs().len())
        .max()
        .filter(|n| *n > 0)?;
    if most == 1 {
        return Some(
            "One seed per method: no spread can be shown, and small differences may be luck."
                .to_owned(),
        );
    }
    let fewer = groups
        .iter()
        .filter(|g| (1..most).contains(&g.chosen_runs().len()));
    let labels = names(fewer.map(|g| g.label))?;
    Some(format!(
        "Fewer than {most} seeds at the chosen learning rate: {labels}."
    ))
}

/// Said of studies that try their learning rates on some of the seeds only.
fn tuned_on_fewer_seeds(groups: &[Group<'_>]) -> Option<String> {
    let fewer = groups.iter().filter_map(|group| {
        let tried = group
            .rates
            .iter()
            .filter(|rate| !rate.ok.is_empty())
            .count();
        let shared = shared_seeds(&group.rates).len();
        (tried > 1 && shared > 0 && shared < group.chosen_runs().len()).then_some(shared)
    });
    let fewest = fewer.min()?;
    let seeds = if fewest == 1 { "seed" } else { "seeds" };
    Some(format!(
        "Learning rates were chosen on the dev score of {fewest} {seeds}; the other seeds ran at the \
         chosen one."
    ))
}

fn edge_of_grid(groups: &[Group<'_>]) -> Option<String> {
    let edge = |g: &&Group<'_>| {
        let (last, scores) = (g.rates.len() - 1, g.compared());
        // Where all rates score the same, none is better further out that anybody could tell.
        let differ = scores.iter().any(|score| *score != scores[0]);
        differ && g.chosen.is_some_and(|i| i == 0 || i == last)
    };
    let chosen = |g: &Group<'_>| g.chosen.map(|i| format::rate(g.rates[i].learning_rate));
    let labels: Vec<_> = groups
        .iter()
        .filter(edge)
        .map(|g| format!("`{}` ({})", g.label, chosen(g).unwrap_or_default()))
        .collect();
    (!labels.is_empty()).then(|| {
        format!(
            "The chosen learning rate is at the edge of those tried, a better one may lie \
             outside: {}.",
            labels.join(", ")
        )
    })
}

fn not_compared(groups: &[Group<'_>], rows: &[Row], best: Option<usize>) -> Option<String> {
    let best = best?;
    // Where the best itself kept no answers there was never a comparison to miss.
    example_scores(groups[best].chosen_runs())?;
    let missing = rows.iter().enumerate();
    let missing = missing
        .filter(|(i, row)| *i != best && row.test.is_some() && row.versus_best.is_none())
        .map(|(_, row)| row.label.as_str());
    let labels = names(missing)?;
    Some(format!(
        "Not compared with the best label example by example, because the answers kept are not of \
         the same test examples: {labels}."
    ))
}

fn names<'a>(labels: impl Iterator<Item = &'a str>) -> Option<String> {
    let quoted: Vec<_> = labels.map(|label| format!("`{label}`")).collect();
    (!quoted.is_empty()).then(|| quoted.join(", "))
}
