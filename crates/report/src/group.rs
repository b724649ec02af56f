//! Trials grouped by label and learning rate, and the learning rate chosen on dev alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ReportError;
use crate::metric::Metric;
use crate::record::{Record, Status};
use crate::stats::mean;
use crate::summary::metric_of;

/// All trials of one label.
#[derive(Clone, Debug)]
pub(crate) struct Group<'a> {
    pub(crate) label: &'a str,
    /// In ascending order; never empty.
    pub(crate) rates: Vec<Rate<'a>>,
    /// Index of the learning rate chosen on dev, if any trial ended well.
    pub(crate) chosen: Option<usize>,
}

/// All trials of one label at one learning rate: one per seed.
#[derive(Clone, Debug)]
pub(crate) struct Rate<'a> {
    pub(crate) learning_rate: f64,
    pub(crate) ok: Vec<&'a Record>,
    pub(crate) failed: Vec<&'a Record>,
}

impl<'a> Group<'a> {
    /// Any trial of the label: what all of them share.
    pub(crate) fn first(&self) -> &'a Record {
        let rate = &self.rates[0];
        rate.ok
            .first()
            .or(rate.failed.first())
            .expect("a learning rate has a trial")
    }

    /// The trials at the chosen learning rate that ended well.
    pub(crate) fn chosen_runs(&self) -> &[&'a Record] {
        self.chosen.map_or(&[], |i| &self.rates[i].ok)
    }

    /// The dev score of every rate, by which one was chosen: the mean over the seeds that were run at
    /// all of them.
    pub(crate) fn compared(&self) -> Vec<Option<f64>> {
        compared(&self.rates)
    }

    pub(crate) fn trials(&self) -> usize {
        self.rates
            .iter()
            .map(|rate| rate.ok.len() + rate.failed.len())
            .sum()
    }

    pub(crate) fn failures(&self) -> usize {
        self.rates.iter().map(|rate| rate.failed.len()).sum()
    }
}

impl Rate<'_> {
    /// Mean over seeds of the study's metric on dev.
    pub(crate) fn dev(&self) -> Option<f64> {
        mean(&self.scores("dev"))
    }

    /// The same over these seeds.
    fn dev_of(&self, seeds: &BTreeSet<u64>) -> Option<f64> {
        let wanted = self.ok.iter().filter(|r| seeds.contains(&r.trial.seed));
        let scores: Vec<f64> = wanted.filter_map(|r| r.score("dev")).collect();
        mean(&scores)
    }

    pub(crate) fn seeds(&self) -> BTreeSet<u64> {
        self.ok.iter().map(|r| r.trial.seed).collect()
    }

    /// The study's metric on `split`, one value per seed that has it.
    pub(crate) fn scores(&self, split: &str) -> Vec<f64> {
        self.ok
            .iter()
            .filter_map(|record| record.score(split))
            .collect()
    }

    /// The seeds that were run, however they ended.
    fn attempted(&self) -> BTreeSet<u64> {
        let all = self.ok.iter().chain(&self.failed);
        all.map(|record| record.trial.seed).collect()
    }

    /// Whether any of these seeds diverged.
    fn diverged(&self, seeds: &BTreeSet<u64>) -> bool {
        self.failed.iter().any(|record| {
            let diverged = matches!(record.status, Status::Diverged { .. });
            diverged && seeds.contains(&record.trial.seed)
        })
    }
}

/// Groups records by label in order of first appearance.
pub(crate) fn groups<'a>(records: &'a [Record], metric: &Metric) -> Vec<Group<'a>> {
    let mut labels: Vec<(&str, BTreeMap<RateKey, Rate<'a>>)> = Vec::new();
    for record in records {
        let label = record.trial.label.as_str();
        let at = labels
            .iter()
            .position(|(l, _)| *l == label)
            .unwrap_or_else(|| {
                labels.push((label, BTreeMap::new()));
                labels.len() - 1
            });
        let learning_rate = record.trial.learning_rate;
        let rate = labels[at].1.entry(RateKey::of(learning_rate));
        let rate = rate.or_insert(Rate {
            learning_rate,
            ok: Vec::new(),
            failed: Vec::new(),
        });
        let list = if record.status.is_ok() {
            &mut rate.ok
        } else {
            &mut rate.failed
        };
        list.push(record);
    }
    labels
        .into_iter()
        .map(|(label, rates)| {
            let rates: Vec<_> = rates.into_values().collect();
            let chosen = choose(&rates, metric);
            Group {
                label,
                rates,
                chosen,
            }
        })
        .collect()
}

/// The learning rate with the best mean dev score over the seeds that were run at every rate, so
/// that a rate tried with few seeds meets the others on those. One at which such a seed diverged is
/// taken only where every other did too: its mean would be over the lucky seeds. What seeds do that
/// ran at the chosen rate alone does not choose another one. The test score plays no part.
fn choose(rates: &[Rate<'_>], metric: &Metric) -> Option<usize> {
    let dev = compared(rates);
    let tried = rates.iter().map(Rate::attempted).reduce(|a, b| &a & &b)?;
    let diverged: Vec<bool> = rates.iter().map(|rate| rate.diverged(&tried)).collect();
    let better = |a: usize, b: usize| match (dev[a], dev[b]) {
        _ if diverged[a] != diverged[b] => diverged[b],
        (Some(a), Some(b)) => metric.better(a, b),
        (a, b) => a.is_some() && b.is_none(),
    };
    (0..rates.len())
        .filter(|&i| !rates[i].ok.is_empty())
        .reduce(|best, i| if better(i, best) { i } else { best })
}

/// The dev scores by which the rates are compared: means over the seeds they share, if any.
fn compared(rates: &[Rate<'_>]) -> Vec<Option<f64>> {
    let seeds = shared_seeds(rates);
    let dev = |rate: &Rate<'_>| match seeds.is_empty() {
        true => rate.dev(),
        false => rate.dev_of(&seeds),
    };
    rates.iter().map(dev).collect()
}

/// The seeds that ended well at every rate that has any.
pub(crate) fn shared_seeds(rates: &[Rate<'_>]) -> BTreeSet<u64> {
    let with_any = rates.iter().filter(|rate| !rate.ok.is_empty());
    let shared = with_any.map(Rate::seeds).reduce(|a, b| &a & &b);
    shared.unwrap_or_default()
}

/// The learning rate chosen on dev among these trials of one label, if any ended well.
///
/// # Errors
/// If they do not all rank by one metric.
pub fn chosen_rate(records: &[Record]) -> Result<Option<f64>, ReportError> {
    let metric = metric_of(records)?;
    let groups = groups(records, &metric);
    let group = groups.first();
    Ok(group.and_then(|g| g.chosen.map(|i| g.rates[i].learning_rate)))
}

/// A learning rate to six digits: one that went through single precision is the same.
#[derive(Clone, Copy, PartialEq)]
struct RateKey(f64);

impl RateKey {
    fn of(learning_rate: f64) -> Self {
        Self(
            format!("{learning_rate:.5e}")
                .parse()
                .unwrap_or(learning_rate),
        )
    }
}

impl Eq for RateKey {}

impl PartialOrd for RateKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RateKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{diverged, failed, record};

    fn chosen(records: &[Record], higher_is_better: bool) -> f64 {
        let metric = Metric {
            name: "accuracy".into(),
            higher_is_better,
        };
        let groups = groups(records, &metric);
        let group = &groups[0];
        group.rates[group.chosen.unwrap()].learning_rate
    }

    #[test]
    fn the_learning_rate_is_chosen_on_dev_even_where_test_disagrees() {
        let records = [
            record("LoRA r8", 1e-4, 1, 0.80, 0.99),
            record("LoRA r8", 1e-3, 1, 0.85, 0.10),
            record("LoRA r8", 1e-3, 2, 0.83, 0.10),
        ];
        assert_eq!(chosen(&records, true), 1e-3);
        assert_eq!(chosen(&records, false), 1e-4);
    }

    #[test]
    fn a_rate_tried_with_one_lucky_seed_meets_the_others_on_that_seed() {
        let records = [
            record("LoRA r8", 1e-4, 1, 0.85, 0.8),
            record("LoRA r8", 1e-3, 1, 0.86, 0.8),
            record("LoRA r8", 1e-3, 2, 0.70, 0.7),
        ];
        assert_eq!(chosen(&records, true), 1e-3);
        assert_eq!(chosen_rate(&records).unwrap(), Some(1e-3));
    }

    #[test]
    fn a_rate_at_which_a_seed_diverged_is_not_chosen_on_its_lucky_seeds() {
        let mut records = vec![
            record("LoRA r8", 1e-4, 1, 0.80, 0.8),
            record("LoRA r8", 1e-4, 2, 0.80, 0.8),
            record("LoRA r8", 1e-2, 1, 0.95, 0.9),
            failed("LoRA r8", 1e-2, 2, diverged()),
        ];
        assert_eq!(chosen(&records, true), 1e-4);
        records.drain(..2);
        assert_eq!(chosen(&records, true), 1e-2);
    }

    #[test]
    fn a_seed_that_diverged_later_at_the_chosen_rate_does_not_choose_another() {
        let mut records = vec![
            record("LoRA r8", 1e-4, 1, 0.80, 0.8),
            record("LoRA r8", 1e-2, 1, 0.95, 0.9),
        ];
        assert_eq!(chosen_rate(&records).unwrap(), Some(1e-2));
        records.push(record("LoRA r8", 1e-2, 2, 0.94, 0.9));
        records.push(failed("LoRA r8", 1e-2, 3, diverged()));
        assert_eq!(chosen(&records, true), 1e-2);
    }

    #[test]
    fn rates_that_differ_by_single_precision_are_one() {
        let records = [
            record("LoRA r8", 3e-4, 1, 0.8, 0.8),
            record("LoRA r8", f64::from(3e-4_f32), 2, 0.8, 0.8),
        ];
        let metric = Metric {
            name: "accuracy".into(),
            higher_is_better: true,
        };
        let groups = groups(&records, &metric);
        assert_eq!((groups[0].rates.len(), groups[0].rates[0].ok.len()), (1, 2));
    }

    #[test]
    fn a_label_whose_trials_all_failed_has_no_choice() {
        let records = [failed("LoRA r8", 1e-3, 1, diverged())];
        let metric = Metric {
            name: "accuracy".into(),
            higher_is_better: true,
        };
        let groups = groups(&records, &metric);
        assert_eq!(groups[0].chosen, None);
        assert_eq!((groups[0].trials(), groups[0].failures()), (1, 1));
    }
}
