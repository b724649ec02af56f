use std::collections::BTreeMap;

use super::*;
use crate::study::TrainConfig;
use crate::trial::expand;

/// What a sweep of the smoke study says before its first trial, with these settings.
fn listing(train: &str, only: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/smoke.toml");
    let mut study = Study::load(&file, &BTreeMap::new()).unwrap();
    let learning_rate = study.train.learning_rate.clone();
    study.train = TrainConfig {
        learning_rate,
        ..toml::from_str(train).unwrap()
    };
    let registry = Registry::builtin();
    let trials = expand(&study, &registry, "cpu", &BTreeMap::new()).unwrap();
    let wanted = trials.iter().filter(|trial| trial.id.contains(only));
    let wanted: Vec<_> = wanted.cloned().collect();
    let tables = data::tables(&study.task).unwrap();
    let check = Check {
        study: &study,
        tables: &tables,
        registry: &registry,
    };
    check.listing(&trials, &wanted)
}

/// Trained parameters and the line of the only trial of a listing.
fn trained(listing: &str) -> u64 {
    let line = listing.lines().nth(1).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_name_that_means_nothing_is_told_before_the_first_trial() {
    let error = listing("no_decay = [\"nroms\"]", "").unwrap_err();
    let error = crate::error::told(&error);
    let expected = "method `Full fine-tuning`: `train.no_decay` names `nroms`";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_name_that_only_some_methods_train_is_fine_and_one_that_none_does_is_not() {
    // Full fine-tuning trains norms; it counts where its trials are not run now, too.
    for only in ["", "lora-r4"] {
        listing(
            "no_decay = [\"norms\"]\nrates = { \"c_attn/b\" = 4.0 }",
            only,
        )
        .unwrap();
    }
    // The place is in the model, and no method puts anything there.
    let error = listing("rates = { \"ln_f/b\" = 2.0 }", "").unwrap_err();
    let expected = "`train.rates` names `ln_f/b`, which no method of the study trains";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn layers_that_are_never_trained_are_not_counted() {
    let whole = trained(&listing("", "lora-r4").unwrap());
    let drop = "adapter_drop = { kind = \"specialized\", layers = 2 }";
    // Of four.
    let half = trained(&listing(drop, "lora-r4").unwrap());
    assert_eq!(2 * half, whole);
}
