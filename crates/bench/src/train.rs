//! The training loop, the same for every method.

use std::time::{Duration, Instant};

use anyhow::ensure;
use burn::module::Module;
use burn::tensor::Device;
use models::Model;
use peft_core::{Adapted, Host, Init, Method, state};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use report::record::{CurvePoint, TimeInfo};

use crate::adversarial::Adversary;
use crate::batching::{TrainBatch, collate, pack};
use crate::data::Example;
use crate::evaluate::Evaluator;
use crate::groups::Groups;
use crate::layer_drop::{LayerDrop, as_evaluated};
use crate::mixture;
use crate::progress::Progress;
use crate::quantile::quantile;
use crate::schedule::Schedule;
use crate::stepper::Stepper;
use crate::study::{OneOrMany, Task, TrainConfig};

/// What training gives.
pub struct Outcome {
    /// The trained model.
    pub model: Adapted<Model>,
    /// Losses and dev scores along the way.
    pub curve: Vec<CurvePoint>,
    /// Times; evaluation counted apart.
    pub time: TimeInfo,
}

/// Why training ended without a model.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The loss stopped being finite.
    #[error("the loss was {loss} at step {step}")]
    Diverged {
        /// Optimizer steps taken.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// The time limit was reached.
    #[error("stopped at step {step} after {minutes} minutes")]
    Timeout {
        /// Optimizer steps taken.
        step: usize,
        /// The limit.
        minutes: f64,
    },
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Trains a model with its method on the evaluator's data.
///
/// # Errors
/// If the settings do not go with the model, the loss stops being finite, the time limit is reached, or an evaluation fails.
pub fn train(
    model: Adapted<Model>,
    method: &dyn Method,
    config: &TrainConfig,
    seed: u64,
    device: &Device,
    evaluator: &Evaluator<'_>,
    progress: &mut dyn Progress,
) -> Result<Outcome, Stopped> {
    let plan = Plan::new(evaluator.data.splits.train.len(), config);
    let stepper = stepper(model, method, config, seed, &plan, device)?;
    let mut run = Run::new(stepper, plan, config, seed, device, evaluator);
    progress.start(run.plan.steps);
    for pass in 0..config.epochs {
        if run.epoch(pass, progress)? == Flow::Stop {
            break;
        }
    }
    progress.finish();
    Ok(run.finish())
}

/// Number of optimizer steps of a run.
struct Plan {
    steps: usize,
    /// Batches after which dev is evaluated.
    evaluate_every: usize,
}

impl Plan {
    fn new(examples: usize, config: &TrainConfig) -> Self {
        let batches = examples.div_ceil(config.batch_size).max(1);
        let steps_per_epoch = batches.div_ceil(config.accumulation);
        let evaluate_every = batches.div_ceil(config.evaluations_per_epoch);
        Self {
            steps: steps_per_epoch * config.epochs,
            evaluate_every,
        }
    }
}

#[derive(PartialEq)]
enum Flow {
    Continue,
    Stop,
}

struct Run<'a> {
    stepper: Stepper,
    config: &'a TrainConfig,
    seed: u64,
    device: &'a Device,
    evaluator: &'a Evaluator<'a>,
    plan: Plan,
    drop: LayerDrop,
    started: Instant,
    step: usize,
    step_times: Vec<Duration>,
    tokens: usize,
    /// Losses since the last point of the curve.
    recent: Vec<f32>,
    curve: Vec<CurvePoint>,
    best: Option<(f64, state::Tensors)>,
    without_gain: usize,
}

/// The model with what the settings and its method say of its steps.
fn stepper(
    model: Adapted<Model>,
    method: &dyn Method,
    config: &TrainConfig,
    seed: u64,
    plan: &Plan,
    device: &Device,
) -> anyhow::Result<Stepper> {
    let OneOrMany::One(rate) = config.learning_rate else {
        unreachable!("a trial has one learning rate")
    };
    let (steps, warmup) = (plan.steps, config.warmup_of(plan.steps));
    ensure!(
        config.warmup_steps.is_none() || warmup < steps,
        "`train.warmup_steps` is {warmup}, expected fewer than the run's {steps} steps"
    );
    let schedule = Schedule::new(config.schedule, rate, warmup, steps);
    let groups = Groups::new(&model, method, config)?;
    let init = Init::new(rng(seed, "regulator").random(), device);
    let regulator = method.regulator(steps, init)?;
    let width = model.host.geometry().width;
    let adversary = config.adversarial;
    let adversary = adversary.map(|config| Adversary::new(config, width, seed));
    let stepper = Stepper::new(model, groups, schedule, config.clip);
    let stepper = stepper.with_checkpointing(config.checkpointing);
    Ok(stepper.regulated(regulator).against(adversary))
}

impl<'a> Run<'a> {
    fn new(
        stepper: Stepper,
        plan: Plan,
        config: &'a TrainConfig,
        seed: u64,
        device: &'a Device,
        evaluator: &'a Evaluator<'a>,
    ) -> Self {
        let layers = stepper.model().host.geometry().layers;
        Self {
            stepper,
            config,
            seed,
            device,
            evaluator,
            plan,
            drop: LayerDrop::new(config, layers, seed),
            started: Instant::now(),
            step: 0,
            step_times: Vec::new(),
            tokens: 0,
            recent: Vec::new(),
            curve: Vec::new(),
            best: None,
            without_gain: 0,
        }
    }

    fn epoch(&mut self, pass: usize, progress: &mut dyn Progress) -> Result<Flow, Stopped> {
        self.stepper.enter_epoch(pass);
        let examples = &self.evaluator.data.splits.train;
        let (task, size) = (self.evaluator.task, self.config.batch_size);
        let batches = order(task, examples, size, self.seed, pass);
        let mut done = 0;
        for group in batches.chunks(self.config.accumulation) {
            self.optimizer_step(group)?;
            done += group.len();
            progress.step(
                self.step,
                *self.recent.last().unwrap_or(&f32::NAN),
                self.tokens_per_s(),
            );
            let before = (done - group.len()) / self.plan.evaluate_every;
            let epochs = pass as f64 + done as f64 / batches.len() as f64;
            if done / self.plan.evaluate_every > before || done == batches.len() {
                if self.evaluate(epochs, progress)? == Flow::Stop {
                    return Ok(Flow::Stop);
                }
            } else if self.recent.len() >= self.log_every() {
                self.point(epochs, None);
            }
        }
        Ok(Flow::Continue)
    }

    /// About forty points a run, whatever its length.
    fn log_every(&self) -> usize {
        (self.plan.steps / 40).max(1)
    }

    fn optimizer_step(&mut self, group: &[Vec<&crate::data::Example>]) -> Result<(), Stopped> {
        let start = Instant::now();
        let host = &self.stepper.model().host;
        let arrange = arrange(self.config);
        let drop = &mut self.drop;
        let batches: Vec<_> = group
            .iter()
            .map(|rows| TrainBatch {
                drops: drop.draw(),
                ..arrange(rows, host, self.device)
            })
            .collect();
        self.tokens += batches.iter().map(|batch| batch.tokens).sum::<usize>();
        let loss = self.stepper.step(batches);
        self.step_times.push(start.elapsed());
        self.step += 1;
        self.recent.push(loss);
        let minutes = self.config.timeout_minutes;
        if !loss.is_finite() {
            return Err(Stopped::Diverged {
                step: self.step,
                loss,
            });
        }
        if minutes > 0.0 && self.started.elapsed().as_secs_f64() > minutes * 60.0 {
            return Err(Stopped::Timeout {
                step: self.step,
                minutes,
            });
        }
        Ok(())
    }

    fn tokens_per_s(&self) -> f64 {
        let seconds: f64 = self.step_times.iter().map(Duration::as_secs_f64).sum();
        self.tokens as f64 / seconds.max(1e-9)
    }

    /// Adds a point to the curve.
    fn point(&mut self, epochs: f64, dev: Option<std::collections::BTreeMap<String, f64>>) {
        let losses = std::mem::take(&mut self.recent);
        let mean = losses.iter().map(|l| f64::from(*l)).sum::<f64>() / losses.len().max(1) as f64;
        self.curve.push(CurvePoint {
            step: self.step as u64,
            epoch: epochs,
            train_loss: (!losses.is_empty()).then_some(mean),
            learning_rate: self.stepper.rate(),
            dev,
        });
    }

    fn evaluate(&mut self, epochs: f64, progress: &mut dyn Progress) -> Result<Flow, Stopped> {
        let model = as_evaluated(self.stepper.model(), self.config);
        let dev = self
            .evaluator
            .quick(&model, &self.evaluator.data.splits.dev)?
            .values;
        progress.evaluated(epochs, &dev);
        let score = self.dev_score(&dev);
        self.point(epochs, Some(dev));
        if self.config.early_stopping == 0 || !self.stepper.is_of_final_form() {
            return Ok(Flow::Continue);
        }
        if self.best.as_ref().is_none_or(|(best, _)| score > *best) {
            self.best = Some((score, self.stepper.snapshot()));
            self.without_gain = 0;
        } else {
            self.without_gain += 1;
        }
        let stop = self.without_gain >= self.config.early_stopping;
        Ok(if stop { Flow::Stop } else { Flow::Continue })
    }

    /// What early stopping goes by: the study's metric where the evaluation has it, else the loss.
    fn dev_score(&self, dev: &std::collections::BTreeMap<String, f64>) -> f64 {
        let metric = self.evaluator.task.metric();
        match dev.get(metric.name()) {
            Some(score) if metric.higher_is_better() => *score,
            Some(score) => -score,
            None => -dev.get("loss").copied().unwrap_or(f64::INFINITY),
        }
    }

    fn finish(self) -> Outcome {
        let time = self.time();
        let model = self.stepper.into_model();
        let model = match self.best {
            Some((_, best)) => {
                state::restore(model, best, "best").expect("taken from the same model")
            }
            None => model,
        };
        Outcome {
            model,
            curve: self.curve,
            time,
        }
    }

    fn time(&self) -> TimeInfo {
        let mut times: Vec<f64> = self
            .step_times
            .iter()
            .map(|t| t.as_secs_f64() * 1e3)
            .collect();
        times.sort_by(f64::total_cmp);
        let train_s = times.iter().sum::<f64>() / 1e3;
        TimeInfo {
            train_s,
            steps: self.step as u64,
            tokens: self.tokens as u64,
            tokens_per_s: self.tokens_per_s(),
            step_ms_median: quantile(&times, 0.5),
            step_ms_p95: quantile(&times, 0.95),
            ..TimeInfo::default()
        }
    }
}

/// The batches of one pass over the examples of a run.
pub(crate) fn order<'a>(
    task: &Task,
    examples: &'a [Example],
    batch_size: usize,
    seed: u64,
    pass: usize,
) -> Vec<Vec<&'a Example>> {
    let seed = seed.wrapping_mul(1_000_003).wrapping_add(pass as u64);
    mixture::epoch(task, examples, batch_size, seed)
}

/// Puts examples on a device as a batch.
pub(crate) type Arrange = fn(&[&Example], &Model, &Device) -> TrainBatch;

/// How the settings lay the examples of a batch out.
pub(crate) fn arrange(config: &TrainConfig) -> Arrange {
    match config.packing {
        true => pack,
        false => collate,
    }
}

/// Makes Burn's own random numbers (dropout) follow the seed.
pub fn seed_device(seed: u64, device: &Device) {
    device.seed(ChaCha8Rng::seed_from_u64(seed).random());
}

/// Random numbers of a run for one purpose, so that drawing for one leaves the others' alone.
pub(crate) fn rng(seed: u64, purpose: &str) -> ChaCha8Rng {
    let mut key = [0; 32];
    let bytes = seed.to_le_bytes().into_iter().chain(purpose.bytes());
    key.iter_mut()
        .zip(bytes)
        .for_each(|(key, byte)| *key = byte);
    ChaCha8Rng::from_seed(key)
}

/// The number of values and bytes the trained parameters take.
pub fn trained_size<M: Module>(module: &M) -> (u64, u64) {
    let rows = state::parameters(module);
    let trained = rows.iter().filter(|row| row.trainable);
    trained.fold((0, 0), |(n, bytes), row| {
        (n + row.numel() as u64, bytes + row.bytes as u64)
    })
}
