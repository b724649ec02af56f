//! Committed study files, the README's table, and a whole trial through the library.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bench::execute;
use bench::progress::Silent;
use bench::registry::Registry;
use bench::study::Study;
use bench::trial::{Trial, expand};
use report::record::{Record, Status};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn study(file: &str) -> Study {
    let file = root().join(file);
    let text = std::fs::read_to_string(&file).unwrap();
    // Every variable the file names has a value, and no file behind it.
    let names = text
        .split("${")
        .skip(1)
        .filter_map(|rest| rest.split_once('}'));
    let variables = names.map(|(name, _)| (name.to_string(), "/nowhere".to_string()));
    Study::load(&file, &variables.collect()).unwrap()
}

fn trial(file: &str, id: &str) -> Trial {
    let trials = expand(&study(file), &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
    trials
        .into_iter()
        .find(|trial| trial.id.starts_with(id))
        .unwrap()
}

fn run(trial: &Trial) -> Record {
    execute::run_to_record(trial, &Registry::builtin(), &mut Silent).unwrap()
}

#[test]
fn every_committed_study_loads_and_expands() {
    let files = std::fs::read_dir(root().join("experiments")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let studies: Vec<_> = files
        .filter(|f| f.extension().is_some_and(|e| e == "toml"))
        .collect();
    assert!(studies.len() >= 2);
    for file in studies {
        let study = study(file.to_str().unwrap());
        let trials = expand(&study, &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
        assert!(!trials.is_empty(), "{}", file.display());
    }
}

#[test]
fn the_readme_has_the_registrys_method_table() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let table = Registry::builtin().table();
    assert!(
        readme.contains(&table),
        "paste `peft-bench methods --markdown`:\n{table}"
    );
}

#[test]
fn the_same_trial_twice_gives_the_same_losses_and_answers_bit_for_bit() {
    // Full fine-tuning sums gradients of every kind of weight, which LoRA does not.
    for id in ["full", "lora-r4"] {
        let trial = trial("scripts/smoke.toml", id);
        let (first, second) = (run(&trial), run(&trial));
        assert_eq!(first.status, Status::Ok, "{}", first.status.reason());
        let losses = |r: &Record| r.curve.iter().map(|p| p.train_loss).collect::<Vec<_>>();
        assert!(!losses(&first).is_empty());
        assert_eq!(losses(&first), losses(&second), "{id}");
        assert_eq!(first.predictions, second.predictions, "{id}");
    }
}

/// Keeps so many examples to learn from.
fn limit(trial: &mut Trial, train: usize) {
    let bench::study::Task::Completion { limit, .. } = &mut trial.task else {
        panic!("the study is of completions")
    };
    limit.train = Some(train);
}

#[test]
fn accumulated_batches_show_the_losses_of_one_batch_of_their_size_step_by_step() {
    let mut whole = trial("scripts/smoke.toml", "lora-r4");
    // One batch is all there is to learn from, so that every step sees the same examples.
    limit(&mut whole, 16);
    (whole.train.epochs, whole.train.clip) = (4, 0.0);
    let mut parts = whole.clone();
    (parts.train.batch_size, parts.train.accumulation) = (8, 2);
    let (whole, parts) = (run(&whole), run(&parts));
    for record in [&whole, &parts] {
        assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
        assert_eq!(record.time.steps, 4);
    }
    assert_eq!(whole.curve.len(), 4);
    for (a, b) in whole.curve.iter().zip(&parts.curve) {
        let (a, b) = (a.train_loss.unwrap(), b.train_loss.unwrap());
        // Answers of more tokens weigh less in a batch of their own.
        assert!((a - b).abs() < 0.02 * a, "{a} and {b}");
    }
}

#[test]
fn early_stopping_ends_a_run_that_no_longer_gains_and_keeps_the_best() {
    let mut trial = trial("scripts/smoke.toml", "lora-r4");
    // A rate that overshoots, so that dev soon gets worse.
    trial.train.learning_rate = bench::study::OneOrMany::One(0.3);
    (trial.train.epochs, trial.train.early_stopping) = (30, 2);
    let record = run(&trial);
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    assert!(record.time.steps < 30 * 4, "{} steps", record.time.steps);
    let dev: Vec<f64> = record
        .curve
        .iter()
        .filter_map(|p| p.dev.as_ref().map(|dev| dev["loss"]))
        .collect();
    let best = dev.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(
        (record.scores["dev"]["loss"] - best).abs() < 1e-6,
        "{best} of {dev:?}"
    );
}

/// The smoke study's trial of a method at a rate without warm-up or clipping.
fn unbridled(id: &str, rate: f64) -> Trial {
    let mut trial = trial("scripts/smoke.toml", id);
    trial.train.learning_rate = bench::study::OneOrMany::One(rate);
    (trial.train.clip, trial.train.warmup) = (0.0, 0.0);
    trial
}

/// Whether a record can be kept, and is found again. The last digit of a number may move.
fn is_kept(record: &Record) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let store = report::RecordStore::open(folder.path()).unwrap();
    store.append(record).unwrap();
    let found = store.find(&record.trial.hash).unwrap();
    found.is_some_and(|found| {
        found.status == record.status && found.curve.len() == record.curve.len()
    })
}

#[test]
fn a_learning_rate_that_explodes_is_a_record_of_divergence_with_what_was_learned_before() {
    let record = run(&unbridled("lora-r4", 1e30));
    assert_eq!(record.status.name(), "diverged", "{:?}", record.status);
    assert!(is_kept(&record));
    let losses: Vec<_> = record.curve.iter().map(|point| point.train_loss).collect();
    assert!(
        !losses.is_empty() && losses.iter().all(Option::is_some),
        "{losses:?}"
    );
    let (time, steps) = (&record.time, record.time.steps);
    assert!(steps > 1 && time.train_s > 0.0, "{time:?}");
    assert!(record.memory.measured_peak > 0);
}

#[test]
fn parameters_that_explode_in_the_last_step_are_a_record_of_divergence() {
    let mut trial = unbridled("lora-r4", 1e30);
    limit(&mut trial, 16);
    let record = run(&trial);
    assert_eq!(record.status.name(), "diverged", "{:?}", record.status);
    let reason = record.status.reason();
    assert!(
        reason.contains("the loss on dev was") && reason.contains("step 1"),
        "{reason}"
    );
    assert_eq!(record.time.steps, 1);
    assert!(is_kept(&record));
}

#[test]
fn a_loss_too_large_for_its_perplexity_is_a_result_like_others() {
    let mut trial = unbridled("head", 1e3);
    limit(&mut trial, 16);
    let record = run(&trial);
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    let scores = &record.scores["test"];
    assert!(scores["loss"] > 710.0, "{scores:?}");
    assert!(is_kept(&record));
    let said = |warning: &String| warning.contains("perplexities on test");
    assert!(record.warnings.iter().any(said), "{:?}", record.warnings);
}

#[test]
fn a_trial_that_ran_out_of_time_keeps_its_curve_and_its_times() {
    let mut trial = trial("scripts/smoke.toml", "lora-r4");
    trial.train.timeout_minutes = 1e-9;
    let record = run(&trial);
    assert_eq!(record.status.name(), "timeout", "{:?}", record.status);
    assert_eq!((record.curve.len(), record.time.steps), (1, 1));
    assert!(record.curve[0].epoch > 0.0 && is_kept(&record));
}

#[test]
fn a_base_that_is_not_there_is_a_record_of_failure_that_names_it() {
    let mut trial = trial("scripts/smoke.toml", "lora-r4");
    trial.model = "/nowhere".into();
    let Status::Failed { reason } = run(&trial).status else {
        panic!("it cannot succeed")
    };
    assert!(reason.contains("/nowhere"), "{reason}");
}

#[test]
fn a_saved_adapter_answers_as_the_model_it_was_saved_from() {
    let folder = tempfile::tempdir().unwrap();
    for id in ["lora-r4", "houlsby-8", "qlora-r4"] {
        let trial = trial("scripts/smoke.toml", id);
        let out = folder.path().join(id);
        let record = execute::run(&trial, &Registry::builtin(), Some(&out), &mut Silent).unwrap();
        let again = evaluate(&trial, &out);
        assert_eq!(record.scores["test"]["loss"], again, "{id}");
    }
}

/// The test loss of a base with a saved adapter.
fn evaluate(trial: &Trial, adapter: &Path) -> f64 {
    use burn::module::Module;
    let device = peft_core::device("cpu").unwrap();
    let training = device.clone().autodiff();
    let folder = Path::new(&trial.model);
    let prepared = bench::data::prepare(&trial.task, folder, trial.seed, &training).unwrap();
    let (loaded, data) = (prepared.loaded, prepared.data);
    let tokenizer = bench::source::tokenizer(folder, &loaded.model).unwrap();
    let mut init = peft_core::Init::new(trial.seed, &training);
    let model =
        bench::adapter::load(loaded.model, adapter, &Registry::builtin(), &mut init).unwrap();
    let evaluator = bench::evaluate::Evaluator {
        task: &trial.task,
        data: &data,
        tokenizer: &tokenizer,
        batch_size: trial.train.eval_batch_size,
        device,
    };
    evaluator
        .quick(&model.model.valid(), &data.splits.test)
        .unwrap()
        .values["loss"]
}

#[test]
fn what_does_not_fit_the_positions_of_the_model_is_refused_with_the_keys_to_lower() {
    let device = peft_core::device("cpu").unwrap();
    let prepare = |trial: &Trial| {
        let prepared = bench::data::prepare(&trial.task, Path::new(&trial.model), 0, &device);
        prepared.map(|prepared| prepared.data)
    };
    let mut trial = trial("scripts/smoke.toml", "lora-r4");
    let data = prepare(&trial).unwrap();
    let fits = |virtual_tokens, positions| {
        let fits = data.check_positions(&trial.task, virtual_tokens, positions);
        fits.map_err(|error| error.to_string())
    };
    assert_eq!(fits(0, 128), Ok(()));
    let examples = fits(128, 128).unwrap_err();
    assert!(examples.contains("and 128 virtual ones"), "{examples}");
    // Every example to learn from fits, and an answer of the greatest length does not.
    let splits = [&data.splits.train, &data.splits.dev, &data.splits.test];
    let longest = splits
        .into_iter()
        .flatten()
        .map(|e| e.ids.len())
        .max()
        .unwrap();
    let answers = fits(0, longest).unwrap_err();
    assert!(answers.contains("`max_new_tokens`"), "{answers}");
    if let bench::study::Task::Completion { max_length, .. } = &mut trial.task {
        *max_length = 120;
    }
    let error = prepare(&trial).err().unwrap().to_string();
    assert!(
        error.contains("128 positions") && error.contains("`max_length`"),
        "{error}"
    );
}
