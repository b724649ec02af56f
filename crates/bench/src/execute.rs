//! Runs one trial: in this process, or in one of its own, whose peak memory is its own and whose
//! death is a row of the report and not the end of the sweep.

mod subprocess;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Error, Result};
use burn::module::Module;
use models::Model;
use peft_core::{Adapted, Host, Init, Looked, Method, adapt};
use report::record::{Budget, MemoryInfo, Record, SCHEMA, Sample, Status, TimeInfo};
use tasks::metric::{MOST_LOSS, Metric};

use crate::budget::{self, as_trained};
use crate::data::{self, Prepared};
use crate::evaluate::{Evaluator, Scores};
use crate::layer_drop::{self, as_evaluated};
use crate::look::Ahead;
use crate::memory::Load;
use crate::progress::Progress;
use crate::registry::Registry;
use crate::train::{Stopped, seed_device, train};
use crate::trial::Trial;
use crate::{adapter, environment, memory, parts, source, wording};

pub use subprocess::{Executor, Subprocess};

pub(crate) fn empty_record(trial: &Trial, registry: &Registry, status: Status) -> Result<Record> {
    Ok(Record {
        schema: SCHEMA,
        trial: trial.info(registry)?,
        status,
        environment: environment::describe(&trial.device),
        data: Default::default(),
        budget: Budget::default(),
        time: TimeInfo::default(),
        memory: MemoryInfo::default(),
        curve: Vec::new(),
        scores: Default::default(),
        predictions: Vec::new(),
        samples: Vec::new(),
        warnings: Vec::new(),
    })
}

/// Runs a trial in this process and makes a record of whatever happens, errors and panics too.
///
/// # Errors
/// If not even a record of the failure can be made.
pub fn run_to_record(
    trial: &Trial,
    registry: &Registry,
    progress: &mut dyn Progress,
) -> Result<Record> {
    let attempt = || run(trial, registry, None, progress);
    let reason = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt)) {
        Ok(Ok(record)) => return Ok(record),
        Ok(Err(error)) => crate::error::told(&error),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("panic: {}", text.unwrap_or("of unknown kind"))
        }
    };
    empty_record(trial, registry, Status::Failed { reason })
}

/// Runs a trial in this process. `save` names a folder for the trained adapter.
///
/// # Errors
/// If the trial's model, data or method cannot be used at all; what happens in training is part of
/// the record.
pub fn run(
    trial: &Trial,
    registry: &Registry,
    save: Option<&Path>,
    progress: &mut dyn Progress,
) -> Result<Record> {
    let started = Instant::now();
    let device = peft_core::device(&trial.device)?;
    let training = device.clone().autodiff();
    seed_device(trial.seed, &training);
    let folder = Path::new(&trial.model);
    let Prepared {
        loaded,
        data,
        tokenizer,
    } = data::prepare(&trial.task, folder, trial.seed, &training)?;
    let evaluator = Evaluator {
        task: &trial.task,
        data: &data,
        tokenizer: &tokenizer,
        batch_size: trial.train.eval_batch_size,
        device: device.clone(),
    };
    let told = trial;
    let trial = &told.tokenized(&tokenizer)?;
    let method = trial.method(registry)?;
    trial.check_method(registry)?;
    let predicted = memory::predict(
        &loaded.model,
        &*method,
        &trial.storage,
        Load::of(&trial.train, data.longest()),
    );
    let before = sample_answers(&evaluator, &loaded.model, trial.samples);
    let base = loaded.model.geometry();
    layer_drop::check_on(&trial.train, base.layers).map_err(Error::msg)?;
    let packing = source::packing(&loaded.model);
    parts::bring(&*method, &loaded.model, &training)?;
    let ahead = Ahead {
        task: &trial.task,
        examples: &data.splits.train,
        train: &trial.train,
        seed: trial.seed,
        device: &training,
    };
    let looked = ahead.look(&loaded.model, &*method, &trial.storage)?;
    let (trial, method, look_s) = after(trial, method, looked);
    let trial = &*trial;
    let mut init = Init::new(trial.seed, &training);
    let model = adapt(loaded.model, &*method, trial.storage.build(), &mut init)?;
    let positions = model.host.max_length();
    data.check_positions(&trial.task, model.position_offset, positions)?;

    let known = if wording::has_texts(&told.config) {
        told
    } else {
        trial
    };
    let mut record = empty_record(known, registry, Status::Ok)?;
    if let Some(packing) = packing {
        // The study need not say how its base is stored: the folder does.
        record.trial.storage = packing;
    }
    record.data = data.info.clone();
    record.warnings = data.warnings.clone();
    let idle = budget::without_effect(&model, &trial.train);
    record.warnings.extend(idle);
    record.budget = budget::budget(&as_trained(&model, &trial.train), &base);
    let (base, trained) = (record.budget.base_bytes, record.budget.adapter_bytes);
    let predicted = memory::without(predicted, budget::left_out(&model, &trial.train));
    let outcome = train(
        model,
        &*method,
        &trial.train,
        trial.seed,
        &training,
        &evaluator,
        progress,
    );
    record.memory = MemoryInfo {
        base,
        adapter: trained,
        gradients: trained,
        optimizer: 2 * trained,
        measured_peak: outcome.peak,
        ..predicted
    };
    (record.curve, record.time) = (outcome.curve, outcome.time);
    match outcome.model {
        Ok(model) => finish(&mut record, &model, &evaluator, before, trial, save)?,
        Err(stopped) => record.status = status(stopped),
    }
    record.time.look_s = look_s;
    record.time.total_s = started.elapsed().as_secs_f64();
    Ok(record)
}

/// The trial and its method as a look at the data left them, and the seconds it took.
fn after<'a>(
    trial: &'a Trial,
    method: Arc<dyn Method>,
    looked: Option<(Looked, f64)>,
) -> (Cow<'a, Trial>, Arc<dyn Method>, f64) {
    let Some((Looked { config, method }, seconds)) = looked else {
        return (Cow::Borrowed(trial), method, 0.0);
    };
    let trial = Trial {
        config,
        ..trial.clone()
    };
    (Cow::Owned(trial), method, seconds)
}

fn status(stopped: Stopped) -> Status {
    let reason = stopped.to_string();
    match stopped {
        Stopped::Diverged { .. } | Stopped::DivergedOnDev { .. } => Status::Diverged { reason },
        Stopped::Timeout { .. } => Status::Timeout { reason },
        Stopped::Other(error) => Status::Failed {
            reason: crate::error::told(&error),
        },
    }
}

fn finish(
    record: &mut Record,
    model: &Adapted<Model>,
    evaluator: &Evaluator<'_>,
    before: Vec<String>,
    trial: &Trial,
    save: Option<&Path>,
) -> Result<()> {
    if let Some(folder) = save {
        adapter::save(model, trial, &evaluator.data.heads, folder)?;
    }
    let started = Instant::now();
    let splits = &evaluator.data.splits;
    let scored = as_evaluated(model, &trial.train);
    let dev = evaluator.full(&scored, &splits.dev)?;
    let test = evaluator.full(&scored, &splits.test)?;
    let after = match before.is_empty() {
        true => Vec::new(),
        false => evaluator.answers(&scored.valid(), &splits.test[..before.len()]),
    };
    record.time.eval_s = started.elapsed().as_secs_f64();
    if let Some(reason) = not_finite("dev", &dev).or(not_finite("test", &test)) {
        record.status = Status::Diverged { reason };
        return Ok(());
    }
    for (split, scores) in [("dev", &dev), ("test", &test)] {
        record.warnings.extend(capped(split, scores));
    }
    let samples = before.into_iter().zip(after).zip(&splits.test);
    record.samples = samples
        .map(|((before, after), example)| Sample {
            prompt: example.input.clone(),
            expected: example.expected.clone(),
            before,
            after,
        })
        .collect();
    record.scores = [
        ("dev".to_string(), dev.values),
        ("test".to_string(), test.values),
    ]
    .into();
    record.predictions = test.predictions;
    Ok(())
}

/// What to say of scores that are no numbers, which no record can hold.
fn not_finite(split: &str, scores: &Scores) -> Option<String> {
    let (name, value) = scores.values.iter().find(|(_, value)| !value.is_finite())?;
    Some(format!("{name} on {split} was {value} after the last step"))
}

/// What to say of perplexities that are larger than told.
fn capped(split: &str, scores: &Scores) -> Option<String> {
    let is_capped = |(name, loss): (&String, &f64)| {
        (name == "loss" || name.starts_with("loss/")) && *loss > MOST_LOSS
    };
    let has_perplexity = scores.values.contains_key(Metric::Perplexity.name());
    (has_perplexity && scores.values.iter().any(is_capped))
        .then(|| format!("perplexities on {split} beyond e^{MOST_LOSS} are given as that"))
}

/// Answers of the untouched base to the first test prompts.
fn sample_answers(evaluator: &Evaluator<'_>, model: &Model, count: usize) -> Vec<String> {
    let test = &evaluator.data.splits.test;
    if count == 0 || !model.is_causal() {
        return Vec::new();
    }
    let base = Adapted::plain(model.valid());
    evaluator.answers(&base, &test[..count.min(test.len())])
}
