//! Runs one trial: in this process, or in one of its own, whose peak memory is its own and whose
//! death is a row of the report and not the end of the sweep.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Error, Result};
use burn::module::Module;
use models::Model;
use peft_core::{Adapted, Geometry, Host, Init, Looked, Method, adapt, state};
use report::RecordStore;
use report::record::{Budget, MemoryInfo, Record, SCHEMA, Sample, Status, TimeInfo};

use crate::data::{self, Prepared};
use crate::evaluate::Evaluator;
use crate::layer_drop::{self, as_evaluated};
use crate::look::Ahead;
use crate::memory::Load;
use crate::progress::Progress;
use crate::registry::Registry;
use crate::train::{Outcome, Stopped, seed_device, train, trained_size};
use crate::trial::Trial;
use crate::{adapter, environment, memory, parts, source, wording};

/// Runs trials; a sweep does not care how.
pub trait Executor {
    /// Runs a trial to its record, however it ends.
    ///
    /// # Errors
    /// If no record can be made or stored.
    fn run(&self, trial: &Trial, store: &RecordStore) -> Result<Record>;
}

/// Runs each trial in a process of its own.
pub struct Subprocess<'a> {
    /// The methods trials may name.
    pub registry: &'a Registry,
    /// Threads of the process.
    pub threads: Option<usize>,
    /// Whether it shows progress.
    pub quiet: bool,
}

impl Executor for Subprocess<'_> {
    fn run(&self, trial: &Trial, store: &RecordStore) -> Result<Record> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        let out = store
            .folder()
            .parent()
            .context("records lie in a study folder")?;
        command
            .arg("run-trial")
            .arg("--out")
            .arg(out)
            .stdin(Stdio::piped());
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        if self.quiet {
            command.arg("--quiet");
        }
        let mut child = command
            .spawn()
            .context("cannot start a process for the trial")?;
        serde_json::to_writer(
            child.stdin.take().context("the process has no input")?,
            trial,
        )?;
        let status = child.wait()?;
        match store.find(&trial.hash)? {
            Some(record) if status.success() => Ok(record),
            _ => {
                let record = died(trial, self.registry, status)?;
                store.append(&record)?;
                Ok(record)
            }
        }
    }
}

/// The record of a trial whose process ended without writing one.
fn died(trial: &Trial, registry: &Registry, status: std::process::ExitStatus) -> Result<Record> {
    use std::os::unix::process::ExitStatusExt;
    // The kernel's out-of-memory killer sends signal 9; an allocation that fails aborts (6).
    let status = match status.signal() {
        Some(signal @ (6 | 9)) => Status::Oom {
            reason: format!(
                "the process was ended by signal {signal}: out of memory, or killed by hand"
            ),
        },
        _ => Status::Failed {
            reason: format!("the process ended early: {status}"),
        },
    };
    empty_record(trial, registry, status)
}

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
    record.budget = budget(&model, &base);
    let trained = record.budget.adapter_bytes;
    record.memory = MemoryInfo {
        base: record.budget.base_bytes,
        adapter: trained,
        gradients: trained,
        optimizer: 2 * trained,
        ..predicted
    };
    memory::restart_peak();
    match train(
        model,
        &*method,
        &trial.train,
        trial.seed,
        &training,
        &evaluator,
        progress,
    ) {
        Ok(outcome) => finish(&mut record, outcome, &evaluator, before, trial, save)?,
        Err(stopped) => record.status = status(stopped),
    }
    record.memory.measured_peak = memory::peak_rss();
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
        Stopped::Diverged { .. } => Status::Diverged { reason },
        Stopped::Timeout { .. } => Status::Timeout { reason },
        Stopped::Other(error) => Status::Failed {
            reason: crate::error::told(&error),
        },
    }
}

fn finish(
    record: &mut Record,
    outcome: Outcome,
    evaluator: &Evaluator<'_>,
    before: Vec<String>,
    trial: &Trial,
    save: Option<&Path>,
) -> Result<()> {
    let started = Instant::now();
    if let Some(folder) = save {
        adapter::save(&outcome.model, trial, &evaluator.data.heads, folder)?;
    }
    let splits = &evaluator.data.splits;
    let scored = as_evaluated(&outcome.model, &trial.train);
    let dev = evaluator.full(&scored, &splits.dev)?;
    let test = evaluator.full(&scored, &splits.test)?;
    let after = match before.is_empty() {
        true => Vec::new(),
        false => evaluator.answers(&scored.valid(), &splits.test[..before.len()]),
    };
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
    record.curve = outcome.curve;
    record.time = TimeInfo {
        eval_s: started.elapsed().as_secs_f64(),
        ..outcome.time
    };
    Ok(())
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

/// Parameters and bytes of an adapted model, given the shape of its base.
fn budget(model: &Adapted<Model>, base: &Geometry) -> Budget {
    let (trainable, adapter_bytes) = trained_size(model);
    let of_the_base: HashSet<_> = model.host.geometry().params.iter().map(|p| p.id).collect();
    let rows = state::parameters(model);
    // What is neither new nor unfrozen, plus what was unfrozen in place.
    let kept = rows
        .iter()
        .filter(|row| !row.trainable || of_the_base.contains(&row.id));
    let head = base.task_head_parameters();
    Budget {
        base: (base.base_parameters() - head) as u64,
        trainable,
        head: head as u64,
        base_bytes: kept.map(|row| row.bytes as u64).sum(),
        adapter_bytes,
    }
}
