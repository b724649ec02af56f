//! Whole trials with what acts around the optimizer's step: groups, freezing, methods that prune
//! and merge as they train, or look at the data before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bench::execute;
use bench::groups::Freeze;
use bench::progress::Silent;
use bench::registry::Registry;
use bench::study::Study;
use bench::trial::{Trial, expand};
use burn::module::Module;
use peft_core::Init;
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

/// The trained adapter of a folder, in its base.
fn load(trial: &Trial, adapter: &Path) -> bench::adapter::Fitted {
    let training = peft_core::device("cpu").unwrap().autodiff();
    let folder = Path::new(&trial.model);
    let prepared = bench::data::prepare(&trial.task, folder, trial.seed, &training).unwrap();
    let mut init = Init::new(trial.seed, &training);
    let base = prepared.loaded.model;
    bench::adapter::load(base, adapter, &Registry::builtin(), &mut init).unwrap()
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

#[test]
fn groups_and_freezing_act_in_a_trial_and_its_record_tells_them() {
    let mut plain = trial("full", json!({}));
    (plain.train.epochs, plain.train.early_stopping) = (2, 2);
    let mut grouped = plain.clone();
    grouped.train.rates = BTreeMap::from([("norms".into(), 0.5)]);
    grouped.train.layer_decay = Some(0.9);
    grouped.train.no_decay = vec!["biases".into(), "norms".into()];
    grouped.train.freeze = vec![Freeze {
        params: vec!["h.0".into(), "wte".into()],
        from_epoch: 0,
        until_epoch: Some(1),
    }];
    let (plain, grouped) = (run(&plain), run(&grouped));
    for record in [&plain, &grouped] {
        assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    }
    assert_ne!(plain.scores["dev"]["loss"], grouped.scores["dev"]["loss"]);
    let told = &grouped.trial.config["train"];
    assert_eq!(told["rates"]["norms"], 0.5);
    assert_eq!(told["freeze"][0]["until_epoch"], 1);
    assert!(plain.trial.config["train"].get("rates").is_none());
}

#[test]
fn settings_that_do_not_fit_the_model_or_the_run_are_records_of_failure_that_name_the_key() {
    let lora = || trial("lora", json!({"rank": 2}));
    let mut unmatched = lora();
    unmatched.train.rates = BTreeMap::from([("head".into(), 2.0)]);
    let mut warmup = lora();
    warmup.train.warmup_steps = Some(4);
    let other = trial("adalora", json!({"total_steps": 5}));
    let merges = trial("relora", json!({"merge_every": 1, "merges": 1}));
    for (trial, expected) in [
        (unmatched, "`train.rates` names `head`"),
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
