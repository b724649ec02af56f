//! In which order a sweep runs its trials, where learning rates are tried on some seeds only.

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use report::RecordStore;

use crate::study::Study;
use crate::trial::Trial;

/// The trials of a sweep: first those that choose the learning rates, then the rest at the chosen
/// ones.
pub struct Plan {
    tuning: Vec<Trial>,
    others: Vec<Trial>,
}

impl Plan {
    /// Splits a study's trials by [`Study::tuning_seeds`]. What is tried at one rate only has
    /// nothing to choose.
    pub fn new(study: &Study, trials: Vec<Trial>) -> Self {
        let count = study.tuning_seeds.unwrap_or(study.seeds.len());
        let seeds: HashSet<u64> = study.seeds.iter().take(count).copied().collect();
        let (tuning, others) = trials
            .into_iter()
            .partition(|trial| seeds.contains(&trial.seed));
        Self { tuning, others }
    }

    /// The trials that choose the rates, every one to be run.
    pub fn tuning(&self) -> &[Trial] {
        &self.tuning
    }

    /// How many trials are run, as far as is known before any was.
    pub fn count(&self) -> usize {
        let chosen: HashSet<_> = self.others.iter().map(|t| (&t.label, t.seed)).collect();
        self.tuning.len() + chosen.len()
    }

    /// The other trials at the rates that records of the first ones choose on dev. A label without
    /// any that ended well has no rate, and runs no further.
    ///
    /// # Errors
    /// If records cannot be read.
    pub fn rest(&self, store: &RecordStore) -> Result<Vec<&Trial>> {
        let mut rates = BTreeMap::new();
        for label in self.others.iter().map(|trial| &trial.label) {
            if !rates.contains_key(label) {
                rates.insert(label, self.chosen(label, store)?);
            }
        }
        // A rate that was written and read again may have moved by its last digit.
        let same = |a: f64, b: f64| (a - b).abs() < 1e-9 * b;
        let at_its_rate =
            |t: &&Trial| rates[&t.label].is_some_and(|rate| same(rate, t.learning_rate));
        Ok(self.others.iter().filter(at_its_rate).collect())
    }

    fn chosen(&self, label: &str, store: &RecordStore) -> Result<Option<f64>> {
        let mut records = Vec::new();
        for trial in self.tuning.iter().filter(|trial| trial.label == label) {
            let record = store.find(&trial.hash)?;
            records.extend(record.map(|record| trial.renamed(record)));
        }
        if records.is_empty() {
            return Ok(None);
        }
        Ok(report::chosen_rate(&records)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::empty_record;
    use crate::registry::Registry;
    use crate::trial::expand;
    use report::record::Status;

    fn study(more: &str) -> Study {
        let text = format!(
            r#"
            name = "plan"
            question = "?"
            model = "base"
            seeds = [1, 2, 3]
            {more}
            [task]
            kind = "completion"
            data = {{ scenario = 1 }}
            max_length = 8
            max_new_tokens = 8
            metric = "exact_match"
            [train]
            learning_rate = [1e-3, 3e-3]
            [[method]]
            kind = "lora"
            rank = [1, 4]
            [[method]]
            kind = "head"
            learning_rate = 1e-2
            "#
        );
        toml::from_str(&text).unwrap()
    }

    fn plan(study: &Study) -> Plan {
        let trials = expand(study, &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
        Plan::new(study, trials)
    }

    fn ids<'a>(trials: impl IntoIterator<Item = &'a Trial>) -> Vec<&'a str> {
        trials.into_iter().map(|trial| trial.id.as_str()).collect()
    }

    fn with_records(trials: &[Trial], dev: impl Fn(&Trial) -> Option<f64>) -> RecordStore {
        let folder = tempfile::tempdir().unwrap().keep();
        let store = RecordStore::open(&folder).unwrap();
        for trial in trials {
            let status = match dev(trial) {
                Some(_) => Status::Ok,
                None => Status::Failed { reason: "?".into() },
            };
            let mut record = empty_record(trial, &Registry::builtin(), status).unwrap();
            let scores = dev(trial).map(|score| ("exact_match".to_string(), score));
            record.scores = [("dev".to_string(), scores.into_iter().collect())].into();
            store.append(&record).unwrap();
        }
        store
    }

    #[test]
    fn without_tuning_seeds_every_trial_is_run() {
        let plan = plan(&study(""));
        assert_eq!((plan.tuning().len(), plan.count()), (15, 15));
    }

    #[test]
    fn the_other_seeds_run_at_the_rate_that_dev_chose_for_each_label() {
        let plan = plan(&study("tuning_seeds = 1"));
        assert_eq!((plan.tuning().len(), plan.count()), (5, 11));
        // The small rank is better at the low rate, the large one at the high rate.
        let low = |t: &Trial| (t.label == "LoRA r1") == (t.learning_rate < 2e-3);
        let store = with_records(plan.tuning(), |t| Some(if low(t) { 0.9 } else { 0.1 }));
        let rest = plan.rest(&store).unwrap();
        let expected = [
            "lora-r1--lr1e-3--s2",
            "lora-r1--lr1e-3--s3",
            "lora-r4--lr3e-3--s2",
            "lora-r4--lr3e-3--s3",
            "head-only--lr1e-2--s2",
            "head-only--lr1e-2--s3",
        ];
        assert_eq!(ids(rest), expected);
    }

    #[test]
    fn a_row_that_was_renamed_keeps_its_records() {
        let old = plan(&study("tuning_seeds = 1"));
        let mut renamed = study("tuning_seeds = 1");
        renamed.method[0].name = Some("Low rank".into());
        let renamed = plan(&renamed);
        // One trial was run under the new name, the others under the old one.
        let (first, others) = (&renamed.tuning()[..1], &old.tuning()[1..]);
        let store = with_records(&[first, others].concat(), |t| Some(t.learning_rate));
        let rest = ids(renamed.rest(&store).unwrap());
        assert_eq!(rest[0], "low-rank-r1--lr3e-3--s2", "{rest:?}");
        assert_eq!(rest.len(), 6);
    }

    #[test]
    fn a_label_that_failed_at_every_rate_runs_no_further() {
        let plan = plan(&study("tuning_seeds = 1"));
        let store = with_records(plan.tuning(), |t| (t.label == "LoRA r4").then_some(0.5));
        let rest = plan.rest(&store).unwrap();
        assert!(rest.len() == 2 && rest.iter().all(|t| t.label == "LoRA r4"));
    }
}
