//! The training loop, the same for every method.

mod layout;
mod outcome;
mod plan;
mod random;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::Device;
use models::Model;
use peft_core::{Adapted, Host, Method, state};
use report::record::{CurvePoint, TimeInfo};

use crate::batching::TrainBatch;
use crate::evaluate::Evaluator;
use crate::layer_drop::{LayerDrop, as_evaluated};
use crate::memory;
use crate::progress::Progress;
use crate::quantile::quantile;
use crate::stepper::Stepper;
use crate::study::TrainConfig;

pub(crate) use layout::{arrange, order};
pub use outcome::{Outcome, Stopped};
use plan::{Plan, stepper};
pub(crate) use random::rng;
pub use random::seed_device;

/// Trains a model with its method on the evaluator's data.
///
/// It ends without a model where the settings do not go with the one given, a loss stops being
/// finite, the time limit is reached, or an evaluation fails.
pub fn train(
    model: Adapted<Model>,
    method: &dyn Method,
    config: &TrainConfig,
    seed: u64,
    device: &Device,
    evaluator: &Evaluator<'_>,
    progress: &mut dyn Progress,
) -> Outcome {
    let plan = Plan::new(evaluator.data.splits.train.len(), config);
    let stepper = match stepper(model, method, config, seed, &plan, device) {
        Ok(stepper) => stepper,
        Err(error) => return Outcome::without_a_step(error),
    };
    memory::restart_peak();
    let mut run = Run::new(stepper, plan, config, seed, device, evaluator);
    progress.start(run.plan.steps);
    let ended = run.all_epochs(progress);
    progress.finish();
    run.finish(ended)
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
    /// Largest resident set in training so far.
    peak: u64,
    /// Losses since the last point of the curve.
    recent: Vec<f32>,
    curve: Vec<CurvePoint>,
    best: Option<(f64, state::Tensors)>,
    without_gain: usize,
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
            peak: 0,
            recent: Vec::new(),
            curve: Vec::new(),
            best: None,
            without_gain: 0,
        }
    }

    fn all_epochs(&mut self, progress: &mut dyn Progress) -> Result<(), Stopped> {
        for pass in 0..self.config.epochs {
            if self.epoch(pass, progress)? == Flow::Stop {
                break;
            }
        }
        Ok(())
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
        if !loss.is_finite() {
            return Err(Stopped::Diverged {
                step: self.step,
                loss,
            });
        }
        self.recent.push(loss);
        let minutes = self.config.timeout_minutes;
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
    fn point(&mut self, epochs: f64, dev: Option<BTreeMap<String, f64>>) {
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
        let dev = self.apart(|run| {
            let model = as_evaluated(run.stepper.model(), run.config);
            let dev = &run.evaluator.data.splits.dev;
            run.evaluator.quick(&model, dev)
        });
        let dev = dev?.values;
        progress.evaluated(epochs, &dev);
        if let Some(loss) = dev.get("loss").filter(|loss| !loss.is_finite()) {
            return Err(Stopped::DivergedOnDev {
                step: self.step,
                loss: *loss,
            });
        }
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

    /// Does something whose memory is not that of training.
    fn apart<T>(&mut self, work: impl FnOnce(&Self) -> T) -> T {
        self.peak = self.peak.max(memory::peak_rss());
        let done = work(self);
        memory::restart_peak();
        done
    }

    /// What early stopping goes by: the study's metric where the evaluation has it, else the loss.
    fn dev_score(&self, dev: &BTreeMap<String, f64>) -> f64 {
        let metric = self.evaluator.task.metric();
        match dev.get(metric.name()) {
            Some(score) if metric.higher_is_better() => *score,
            Some(score) => -score,
            None => -dev.get("loss").copied().unwrap_or(f64::INFINITY),
        }
    }

    fn finish(mut self, ended: Result<(), Stopped>) -> Outcome {
        if !self.recent.is_empty() {
            let share = self.step as f64 / self.plan.steps as f64;
            self.point(share * self.config.epochs as f64, None);
        }
        let (time, peak) = (self.time(), self.peak.max(memory::peak_rss()));
        let (stepper, best) = (self.stepper, self.best);
        let model = ended.map(|()| match best {
            Some((_, best)) => state::restore(stepper.into_model(), best, "best")
                .expect("taken from the same model"),
            None => stepper.into_model(),
        });
        Outcome {
            model,
            curve: self.curve,
            time,
            peak,
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

/// The number of values and bytes the trained parameters take.
pub fn trained_size<M: Module>(module: &M) -> (u64, u64) {
    let rows = state::parameters(module);
    let trained = rows.iter().filter(|row| row.trainable);
    trained.fold((0, 0), |(n, bytes), row| {
        (n + row.numel() as u64, bytes + row.bytes as u64)
    })
}
