//! Whole trials with what acts around the optimizer's step: groups, freezing, methods that prune
//! and merge as they train, or look at the data before.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use bench::execute;
use bench::groups::Freeze;
use bench::progress::Silent;
use bench::registry::Registry;
use bench::study::{Study, TrainConfig};
use bench::trial::{Trial, expand};
use burn::module::Module;
use models::Model;
use peft_core::{Host, Init};
use report::record::{Record, Status};
use serde_json::{Value, json};

/// The smoke study's LoRA trial, four steps long, as a trial of another method.
fn trial(kind: &str, config: Value) -> Trial {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let study = Study::load(&root.join("scripts/smoke.toml"), &BTreeMap::new()).unwrap();
    let trials = expand(&study, &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
    let lora = trials.into_iter().find(|trial| trial.kind == "lora");
    let mut trial = lora.unwrap();
    (trial.kind, trial.config) = (kind.into(), config);
    trial
}

fn run(trial: &Trial) -> Record {
    execute::run_to_record(trial, &Registry::builtin(), &mut Silent).unwrap()
}

/// The base of a trial.
fn base(trial: &Trial) -> Model {
    let training = peft_core::device("cpu").unwrap().autodiff();
    let folder = Path::new(&trial.model);
    let prepared = bench::data::prepare(&trial.task, folder, trial.seed, &training).unwrap();
    prepared.loaded.model
}

/// The trained adapter of a folder, in its base.
fn load(trial: &Trial, adapter: &Path) -> bench::adapter::Fitted {
    let training = peft_core::device("cpu").unwrap().autodiff();
    let mut init = Init::new(trial.seed, &training);
    bench::adapter::load(base(trial), adapter, &Registry::builtin(), &mut init).unwrap()
}

/// The test loss of a base with a saved adapter.
fn evaluate(trial: &Trial, adapter: &Path) -> f64 {
    let device = peft_core::device("cpu").unwrap();
    let folder = Path::new(&trial.model);
    let training = device.clone().autodiff();
    let prepared = bench::data::prepare(&trial.task, folder, trial.seed, &training).unwrap();
    let evaluator = bench::evaluate::Evaluator {
        task: &trial.task,
        data: &prepared.data,
        tokenizer: &prepared.tokenizer,
        batch_size: trial.train.eval_batch_size,
        device,
    };
    let model = load(trial, adapter).model.valid();
    let test = &prepared.data.splits.test;
    evaluator.quick(&model, test).unwrap().values["loss"]
}

#[test]
fn what_methods_change_after_steps_is_in_the_adapter_that_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (
            "relora",
            json!({"rank": 2, "merge_every": 1, "merges": 3, "rewarm_steps": 0}),
        ),
        (
            "adalora",
            json!({"init_rank": 4, "target_rank": 1, "tinit": 1}),
        ),
        ("lora_plus", json!({"rank": 2})),
    ];
    for (kind, config) in cases {
        let trial = trial(kind, config);
        let out = folder.path().join(kind);
        let record = execute::run(&trial, &Registry::builtin(), Some(&out), &mut Silent).unwrap();
        assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
        assert_eq!(record.time.steps, 4, "{kind}");
        let again = evaluate(&trial, &out);
        assert_eq!(record.scores["test"]["loss"], again, "{kind}");
        let saved = peft_core::state::load(&out.join("adapter.safetensors")).unwrap();
        let nonzero = |end: &str| -> usize {
            let tensors = saved.iter().filter(|(name, _)| name.ends_with(end));
            let counts = tensors.map(|(_, data)| data.iter::<f32>().filter(|v| *v != 0.0).count());
            counts.sum()
        };
        match kind {
            // The first step has a rate of zero, so that its merge adds nothing to the stack.
            "relora" => assert!(nonzero("merged_b.value") > 0 && nonzero(".b") > 0),
            "adalora" => {
                let layers = saved.keys().filter(|name| name.ends_with(".e")).count();
                assert_eq!(nonzero(".e"), layers, "one triplet a layer in the mean");
            }
            _ => assert!(nonzero(".b") > 0),
        }
    }
}

/// A trial whose adapter, loaded without data, scores as the trained model did.
fn saved(trial: &Trial, out: &Path) -> Record {
    let record = execute::run(trial, &Registry::builtin(), Some(out), &mut Silent).unwrap();
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    let again = evaluate(trial, out);
    assert_eq!(record.scores["test"]["loss"], again, "{}", trial.kind);
    record
}

#[test]
fn what_a_look_at_the_data_found_is_in_the_adapter_and_in_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"rank": 4, "targets": "all-linear", "batches": 2});
    let eva = trial("eva", config);
    let record = saved(&eva, &folder.path().join("eva"));
    let pattern = &record.trial.config["method"]["rank_pattern"];
    let pattern = pattern.as_object().expect("ranks moved").clone();
    let moved = pattern.values().map(|rank| rank.as_i64().unwrap() - 4);
    assert_eq!(moved.sum::<i64>(), 0, "{pattern:?}");
    let fitted = load(&eva, &folder.path().join("eva"));
    let trained = peft_core::state::trainable_parameters(&fitted.model);
    assert_eq!(record.budget.trainable, trained as u64);
    let time = &record.time;
    assert!(time.look_s > 0.0 && time.look_s + time.train_s < time.total_s);

    // Without padding the same tokens are seen.
    let mut packed = eva.clone();
    packed.train.packing = true;
    let same = saved(&packed, &folder.path().join("packed"));
    assert_eq!(same.trial.config["method"]["rank_pattern"], json!(pattern));
    // Over packed weights others go into the layers.
    let mut over_nf4 = eva.clone();
    let storage = json!({"storage": "nf4", "block_size": 64, "double_quant": false});
    over_nf4.storage = serde_json::from_value(storage).unwrap();
    saved(&over_nf4, &folder.path().join("nf4"));

    let config = json!({"bottleneck": 16, "sparsity": 0.9, "pruning": "snip"});
    let out = folder.path().join("snip");
    saved(&trial("sparse_adapter", config), &out);
    let tensors = peft_core::state::load(&out.join("adapter.safetensors")).unwrap();
    let places = tensors.keys().filter(|name| name.contains(".places."));
    assert!(places.count() > 0, "{:?}", tensors.keys());
    let plain = run(&trial("lora", json!({"rank": 2})));
    assert_eq!(plain.time.look_s, 0.0);
}

/// The values of a model's base by the names of the checkpoint.
fn values(model: &Model) -> BTreeMap<String, Vec<f32>> {
    let params = model.geometry().params.into_iter();
    let value = |param: peft_core::BaseParam| {
        let found = peft_core::state::tensors_of(model, &HashSet::from([param.id]));
        let data = found.into_values().next().unwrap();
        (param.name, data.try_to_vec::<f32>().unwrap())
    };
    params.map(value).collect()
}

#[test]
fn what_is_frozen_in_a_trial_stays_the_base_bit_for_bit() {
    let mut frozen = trial("full", json!({}));
    frozen.train.freeze = vec![Freeze {
        params: vec!["h.0".into(), "wte".into()],
        from_epoch: 0,
        until_epoch: None,
    }];
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("adapter");
    let record = execute::run(&frozen, &Registry::builtin(), Some(&out), &mut Silent).unwrap();
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    let told = &record.trial.config["train"]["freeze"][0];
    assert_eq!(told["params"], json!(["h.0", "wte"]));
    let before = values(&base(&frozen));
    let after = values(&load(&frozen, &out).model.host);
    let is_frozen = |name: &str| name.contains(".h.0.") || name.contains("wte");
    let counted = before.keys().filter(|name| is_frozen(name)).count();
    assert!(counted > 1 && counted < before.len(), "{counted}");
    for (name, values) in before {
        assert_eq!(after[&name] == values, is_frozen(&name), "{name}");
    }
}

#[test]
fn every_setting_of_groups_acts_in_a_trial_and_its_record_tells_it() {
    let plain = trial("full", json!({}));
    let loss = |trial: &Trial| {
        let record = run(trial);
        assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
        (
            record.scores["dev"]["loss"],
            record.trial.config["train"].clone(),
        )
    };
    let (expected, told) = loss(&plain);
    type Setting = (&'static str, fn(&mut TrainConfig));
    let settings: [Setting; 3] = [
        ("rates", |train| {
            train.rates = BTreeMap::from([("norms".into(), 0.5)]);
        }),
        ("layer_decay", |train| train.layer_decay = Some(0.9)),
        ("no_decay", |train| train.no_decay = vec!["norms".into()]),
    ];
    for (key, set) in settings {
        let mut grouped = plain.clone();
        set(&mut grouped.train);
        let (found, grouped) = loss(&grouped);
        assert_ne!(found, expected, "{key}");
        assert!(told.get(key).is_none() && grouped.get(key).is_some());
    }
}

#[test]
fn one_setting_of_groups_is_for_all_methods_of_a_study() {
    for (kind, config) in [("lora", json!({"rank": 2})), ("bitfit", json!({}))] {
        let mut trial = trial(kind, config);
        trial.train.no_decay = vec!["norms".into(), "biases".into()];
        let record = run(&trial);
        assert_eq!(
            record.status,
            Status::Ok,
            "{kind}: {}",
            record.status.reason()
        );
    }
}

#[test]
fn settings_that_do_not_fit_the_model_or_the_run_are_records_of_failure_that_name_the_key() {
    let lora = || trial("lora", json!({"rank": 2}));
    let mut unmatched = lora();
    unmatched.train.rates = BTreeMap::from([("heda".into(), 2.0)]);
    let mut warmup = lora();
    warmup.train.warmup_steps = Some(4);
    let other = trial("adalora", json!({"total_steps": 5}));
    let merges = trial("relora", json!({"merge_every": 1, "merges": 1}));
    for (trial, expected) in [
        (unmatched, "`train.rates` names `heda`, which no parameter"),
        (
            warmup,
            "`train.warmup_steps` is 4, expected fewer than the run's 4 steps",
        ),
        (other, "`total_steps` is 5, expected 4"),
        (merges, "`merges` is 1, expected at least 3"),
    ] {
        let Status::Failed { reason } = run(&trial).status else {
            panic!("expected a failure with {expected}")
        };
        assert!(reason.contains(expected), "{reason}");
    }
}
