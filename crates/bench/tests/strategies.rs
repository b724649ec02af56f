//! Training strategies as whole trials: several tasks at once, adversarial training, layers left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bench::adapters::{AdapterArg, Adapters};
use bench::adversarial::Adversarial;
use bench::data::{self, Prepared};
use bench::evaluate::Evaluator;
use bench::execute;
use bench::layer_drop::AdapterDrop;
use bench::progress::Silent;
use bench::registry::Registry;
use bench::study::{Study, Task};
use bench::trial::{StorageSpec, Trial, expand};
use report::record::{Record, Status};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn trial(file: &str, id: &str) -> Trial {
    let study = Study::load(&root().join(file), &BTreeMap::new()).unwrap();
    let trials = expand(&study, &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
    let found = trials.into_iter().find(|trial| trial.id.starts_with(id));
    found.unwrap()
}

/// The mixture of the committed study, small.
fn mixture() -> Trial {
    let mut trial = trial("experiments/mixture.toml", "lora-r1");
    let Task::Mixture(mixture) = &mut trial.task else {
        panic!("the study is of a mixture")
    };
    for (task, train) in mixture.tasks.values_mut().zip([16, 64, 32]) {
        let Task::Completion { limit, .. } = task else {
            panic!("of completions")
        };
        (limit.train, limit.dev, limit.test) = (Some(train), Some(8), Some(train / 2));
    }
    trial.train.epochs = 1;
    trial
}

fn run(trial: &Trial) -> Record {
    let record = execute::run_to_record(trial, &Registry::builtin(), &mut Silent).unwrap();
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    record
}

#[test]
fn a_mixture_is_scored_task_by_task_as_each_task_alone_and_by_the_mean() {
    let folder = tempfile::tempdir().unwrap();
    let mut trial = mixture();
    trial.samples = 9;
    let out = folder.path().join("adapter");
    let registry = Registry::builtin();
    let record = execute::run(&trial, &registry, Some(&out), &mut Silent).unwrap();
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    let device = peft_core::device("cpu").unwrap();
    let training = device.clone().autodiff();
    let (mut losses, mut answers) = (Vec::new(), Vec::new());
    for (name, task) in trial.task.members() {
        let name = name.unwrap();
        let model = Path::new(&trial.model);
        let Prepared {
            loaded,
            data,
            tokenizer,
        } = data::prepare(task, model, 0, &training).unwrap();
        let mut init = peft_core::Init::new(0, &training);
        let adapted = bench::adapter::load(loaded.model, &out, &registry, &mut init).unwrap();
        let evaluator = Evaluator {
            task,
            data: &data,
            tokenizer: &tokenizer,
            batch_size: trial.train.eval_batch_size,
            device: device.clone(),
        };
        let alone = evaluator.full(&adapted.model, &data.splits.test).unwrap();
        for (metric, value) in &alone.values {
            let scored = record.scores["test"][&format!("{metric}/{name}")];
            assert!(
                (scored - value).abs() < 1e-6,
                "{metric}/{name}: {scored} {value}"
            );
        }
        losses.push(alone.values["loss"]);
        answers.extend(alone.predictions.into_iter().map(|answer| answer.predicted));
        assert_eq!(
            record.data[&format!("{name}/train")].examples,
            data.splits.train.len()
        );
    }
    let mean = losses.iter().sum::<f64>() / 3.0;
    assert!((record.scores["test"]["loss"] - mean).abs() < 1e-6);
    let predictions = record.predictions.iter();
    let predicted: Vec<_> = predictions.clone().map(|p| p.predicted.clone()).collect();
    assert_eq!(predicted, answers);
    // Tasks of different size count alike, for paired tests as for the score.
    let score = predictions.map(|p| p.score).sum::<f64>() / answers.len() as f64;
    assert!(
        (score - record.score("test").unwrap()).abs() < 1e-9,
        "{score}"
    );
    assert_eq!(record.trial.metric, "exact_match");
    // Nine prompts reach into the second task, with its own length of answers.
    assert_eq!(record.samples.len(), 9);
    assert!(record.samples[0].prompt.ends_with("Address:"));
    assert!(record.samples[8].prompt.ends_with("Assistant:"));
    assert_eq!(record.samples[8].after, answers[8]);
}

#[test]
fn early_stopping_of_a_mixture_goes_by_the_mean_over_the_tasks() {
    let mut trial = mixture();
    trial.train.learning_rate = bench::study::OneOrMany::One(0.3);
    (trial.train.epochs, trial.train.early_stopping) = (20, 1);
    let record = run(&trial);
    let dev: Vec<f64> = record
        .curve
        .iter()
        .filter_map(|point| point.dev.as_ref().map(|dev| dev["loss"]))
        .collect();
    assert!(dev.len() < 20, "it stopped: {dev:?}");
    let best = dev.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(
        (record.scores["dev"]["loss"] - best).abs() < 1e-6,
        "{best} of {dev:?}"
    );
}

#[test]
fn a_trial_of_a_mixture_is_known_by_its_tasks_and_not_by_their_paths() {
    let study = |folder: &str, temperature: f64| {
        let task = |name: &str| {
            format!(
                "[task.tasks.{name}]\nkind = \"completion\"\nmax_length = 9\nmax_new_tokens = 2\n\
                 metric = \"bleu\"\ndata = {{ train = \"{folder}/a.jsonl\", dev = \"b.jsonl\", \
                 test = \"c.jsonl\" }}\n"
            )
        };
        let text = format!(
            "name = \"s\"\nquestion = \"?\"\nmodel = \"m\"\nseeds = [1]\n[task]\n\
             kind = \"mixture\"\ntemperature = {temperature}\n{}{}[[method]]\nkind = \"lora\"\n",
            task("one"),
            task("two")
        );
        let study: Study = toml::from_str(&text).unwrap();
        let trials = expand(&study, &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
        trials[0].hash.clone()
    };
    assert_eq!(study("here", 2.0), study("there", 2.0));
    assert_ne!(study("here", 2.0), study("here", 3.0));
}

#[test]
fn every_strategy_trains_repeats_bit_for_bit_and_differs_from_plain_training() {
    let plain = trial("scripts/smoke.toml", "lora-r4");
    let losses =
        |record: &Record| -> Vec<_> { record.curve.iter().map(|point| point.train_loss).collect() };
    let without = run(&plain).scores["dev"]["loss"];
    let with = |change: &dyn Fn(&mut bench::study::TrainConfig)| {
        let mut trial = plain.clone();
        change(&mut trial.train);
        let (first, second) = (run(&trial), run(&trial));
        assert_eq!(losses(&first), losses(&second));
        let loss = first.scores["dev"]["loss"];
        assert_eq!(loss, second.scores["dev"]["loss"]);
        assert_ne!(loss, without);
    };
    with(&|train| train.adversarial = Some(Adversarial::Fgm { epsilon: 0.3 }));
    with(&|train| {
        train.accumulation = 2;
        train.adversarial = Some(Adversarial::Freelb {
            steps: 2,
            step_size: 0.1,
            epsilon: 0.2,
            init: None,
        });
    });
    with(&|train| train.stochastic_depth = Some(0.5));
    with(&|train| train.adapter_drop = Some(AdapterDrop::Specialized { layers: 1 }));
}

#[test]
fn layers_that_are_never_trained_are_not_counted_and_what_does_nothing_is_said() {
    let mut lora = trial("scripts/smoke.toml", "lora-r4");
    let whole = run(&lora);
    lora.train.adapter_drop = Some(AdapterDrop::Specialized { layers: 2 });
    let dropped = run(&lora);
    // Two of four layers.
    assert_eq!(dropped.budget.trainable * 2, whole.budget.trainable);
    let (whole, dropped) = (&whole.memory, &dropped.memory);
    assert_eq!(dropped.optimizer * 2, whole.optimizer);
    assert_eq!(
        whole.predicted_peak - dropped.predicted_peak,
        3 * (whole.adapter - dropped.adapter)
    );
    let mut full = trial("scripts/smoke.toml", "full");
    full.train.adapter_drop = lora.train.adapter_drop;
    let said = run(&full).warnings;
    let idle = |warning: &String| warning.contains("`train.adapter_drop` is without effect");
    assert!(said.iter().any(idle), "{said:?}");
}

#[test]
fn more_layers_without_the_method_than_the_model_has_are_a_failure_that_says_so() {
    let mut trial = trial("scripts/smoke.toml", "lora-r4");
    trial.train.adapter_drop = Some(AdapterDrop::Specialized { layers: 99 });
    let record = execute::run_to_record(&trial, &Registry::builtin(), &mut Silent).unwrap();
    let Status::Failed { reason } = record.status else {
        panic!("it cannot succeed")
    };
    assert!(
        reason.contains("`train.adapter_drop.layers` is 99"),
        "{reason}"
    );
}

#[test]
fn an_adapter_trained_for_fewer_layers_is_saved_with_that_and_scored_so_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("adapter");
    let mut trial = trial("scripts/smoke.toml", "lora-r4");
    trial.train.adapter_drop = Some(AdapterDrop::Robust {
        layers: 2,
        evaluate: 1,
    });
    let registry = Registry::builtin();
    let record = execute::run(&trial, &registry, Some(&out), &mut Silent).unwrap();
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    let device = peft_core::device("cpu").unwrap();
    let model = Path::new(&trial.model);
    let Prepared {
        data, tokenizer, ..
    } = data::prepare(&trial.task, model, 0, &device).unwrap();
    let evaluator = Evaluator {
        task: &trial.task,
        data: &data,
        tokenizer: &tokenizer,
        batch_size: trial.train.eval_batch_size,
        device: device.clone(),
    };
    let loss = |drop_layers| {
        let arg = AdapterArg {
            drop_layers,
            ..out.to_str().unwrap().parse().unwrap()
        };
        let adapters = Adapters::load(model, &StorageSpec::F32, &[arg], &registry, &device);
        let model = adapters.unwrap().into_only().unwrap();
        evaluator.quick(&model, &data.splits.test).unwrap().values["loss"]
    };
    let recorded = record.scores["test"]["loss"];
    assert!((loss(None) - recorded).abs() < 1e-6, "{recorded}");
    assert!((loss(Some(0)) - recorded).abs() > 1e-6, "{recorded}");
}
