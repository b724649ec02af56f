//! Timing of training steps on random tokens: the same work for every method and machine.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use models::Model;
use peft_core::state::{self, ParamRow};
use peft_core::{Adapted, Host};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::batching::collate;
use crate::data::{Example, Target};
use crate::groups::Groups;
use crate::memory;
use crate::quantile::quantile;
use crate::schedule::{Decay, Schedule};
use crate::stepper::Stepper;
use crate::train::trained_size;

/// Steps before the clock starts: buffers and caches fill, threads start.
const WARM_UP: usize = 2;

/// The work that is timed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Work {
    /// Sequences a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Steps that are timed.
    pub steps: usize,
    /// Whether layers are computed again in the backward pass.
    pub checkpointing: bool,
}

/// The model under the clock.
pub struct Subject {
    /// The model with its method.
    pub model: Adapted<Model>,
    /// Resident set before there was a model, in bytes.
    pub program: u64,
    /// Floating-point operations of a step, from [`flops`](crate::flops::flops).
    pub flop: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Tokens a second at the median step.
    pub tokens_per_s: f64,
    /// Median step in milliseconds.
    pub step_ms: f64,
    /// 95th percentile of the steps in milliseconds.
    pub step_ms_p95: f64,
    /// Every timed step in milliseconds, in order.
    pub steps_ms: Vec<f64>,
    /// 10^9 floating-point operations a second at the median step.
    pub gflops: f64,
    /// 10^9 floating-point operations of a step.
    pub gflop_per_step: f64,
    /// 10^9 operations a second of one large product of ours alone, on the same threads right
    /// after: what `gflops` can hope for. None where the work was done elsewhere.
    pub ceiling_gflops: Option<f64>,
    /// Largest resident set of the process in 10^6 bytes.
    pub peak_rss_mb: f64,
    /// All parts of `memory` together, which should come close to `peak_rss_mb`.
    pub accounted_mb: f64,
    /// Values that are trained.
    pub trainable: u64,
    /// Values of the model with its adapters.
    pub total: u64,
    /// Loss of the first step.
    pub loss_first: f32,
    /// Loss of the last step.
    pub loss_last: f32,
    /// Where the memory goes.
    pub memory: Parts,
}

/// Where the memory of a training step goes, in 10^6 bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Parts {
    /// Code, libraries and thread stacks, before any model.
    pub program: f64,
    /// Base weights as stored.
    pub base: f64,
    /// Weights that are trained.
    pub adapter: f64,
    /// Their gradients.
    pub gradients: f64,
    /// Their optimizer state.
    pub optimizer: f64,
    /// What a step holds at most beyond all these: saved activations and buffers of operations.
    pub activations: f64,
}

impl Parts {
    /// All parts together.
    pub fn sum(&self) -> f64 {
        self.program + self.base + self.adapter + self.gradients + self.optimizer + self.activations
    }
}

/// Trains on one batch of random tokens again and again, and times it. `pace` is called before every
/// step, outside the time: a program that alternates with another waits there.
///
/// # Errors
/// If the model does not take such sequences, or `pace` fails.
pub fn measure(
    subject: Subject,
    work: Work,
    device: &Device,
    pace: impl FnMut() -> Result<()>,
) -> Result<Figures> {
    anyhow::ensure!(
        work.batch > 0 && work.seq > 1 && work.steps > 0,
        "expected at least 1 sequence of 2 tokens and 1 step"
    );
    let size = Size::of(&subject.model);
    let run = run(subject.model, work, device, pace)?;
    // Before the product below, whose operands are none of the step's memory.
    let peak_rss = memory::peak_rss();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let memory = Parts {
        program: mb(subject.program),
        base: mb(size.frozen_bytes),
        adapter: mb(size.trained_bytes),
        gradients: mb(size.trained_bytes),
        optimizer: mb(2 * size.trained_bytes),
        activations: mb(run.peak_bytes.saturating_sub(size.trained_bytes)),
    };
    let median = quantile(&run.sorted, 0.5);
    let on_cpu = device.clone().inner() == Device::flex();
    Ok(Figures {
        tokens_per_s: (work.batch * work.seq) as f64 / median,
        step_ms: median * 1e3,
        step_ms_p95: quantile(&run.sorted, 0.95) * 1e3,
        steps_ms: run.times.iter().map(|seconds| seconds * 1e3).collect(),
        gflops: subject.flop / median / 1e9,
        gflop_per_step: subject.flop / 1e9,
        ceiling_gflops: on_cpu.then(|| ceiling(work.batch * work.seq, size.width)),
        peak_rss_mb: mb(peak_rss),
        accounted_mb: memory.sum(),
        trainable: size.trainable,
        total: size.total,
        loss_first: run.losses[0],
        loss_last: *run.losses.last().expect("at least one step"),
        memory,
    })
}

/// Says `ready` and waits for a line on standard input.
///
/// # Errors
/// If the input has ended.
pub fn wait_for_a_line() -> Result<()> {
    crate::cli::print("ready\n")?;
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line)?;
    anyhow::ensure!(read > 0, "standard input ended before the last step");
    Ok(())
}

/// The size of a model.
struct Size {
    width: usize,
    trainable: u64,
    total: u64,
    trained_bytes: u64,
    frozen_bytes: u64,
}

impl Size {
    fn of(model: &Adapted<Model>) -> Self {
        let geometry = model.host.geometry();
        let rows = state::parameters(model);
        let (trainable, trained_bytes) = trained_size(model);
        let of_the_base = |id| geometry.params.iter().any(|p| p.id == id);
        let unfrozen: usize = rows
            .iter()
            .filter(|row| row.trainable && of_the_base(row.id))
            .map(ParamRow::numel)
            .sum();
        let bytes: usize = rows.iter().map(|row| row.bytes).sum();
        Self {
            width: geometry.width,
            trainable,
            // Packed weights are bytes to a module; the geometry knows the values they stand for.
            total: geometry.base_parameters() as u64 + trainable - unfrozen as u64,
            trained_bytes,
            frozen_bytes: bytes as u64 - trained_bytes,
        }
    }
}

/// What running the steps gives.
struct Run {
    /// Seconds of the timed steps.
    times: Vec<f64>,
    /// The same, shortest first.
    sorted: Vec<f64>,
    losses: Vec<f32>,
    /// Most bytes allocated within a step beyond those before it.
    peak_bytes: u64,
}

fn run(
    model: Adapted<Model>,
    work: Work,
    device: &Device,
    mut pace: impl FnMut() -> Result<()>,
) -> Result<Run> {
    let examples = random_examples(&model.host, work);
    let rows: Vec<&Example> = examples.iter().collect();
    let schedule = Schedule::new(Decay::Constant, 1e-3, 0, WARM_UP + work.steps);
    let mut stepper = Stepper::new(model, Groups::one(0.01), schedule, 0.0)
        .with_checkpointing(work.checkpointing);
    let mut run = Run {
        times: Vec::new(),
        sorted: Vec::new(),
        losses: Vec::new(),
        peak_bytes: 0,
    };
    for step in 0..WARM_UP + work.steps {
        pace()?;
        memory::take_peak_allocated();
        let (before, start) = (memory::allocated(), Instant::now());
        let batch = collate(&rows, &stepper.model().host, device);
        run.losses.push(stepper.step(vec![batch]));
        if step >= WARM_UP {
            run.times.push(start.elapsed().as_secs_f64());
            let peak = memory::take_peak_allocated().saturating_sub(before);
            run.peak_bytes = run.peak_bytes.max(peak);
        }
    }
    run.sorted = run.times.clone();
    run.sorted.sort_by(f64::total_cmp);
    Ok(run)
}

/// 10^9 operations a second of `[tokens, width] x [width, 4 width]`: the median of some.
fn ceiling(tokens: usize, width: usize) -> f64 {
    use kernels::product::{Start, View, product};
    const REPEATS: usize = 9;
    let (left, right) = (vec![1.0; tokens * width], vec![1.0; 4 * width * width]);
    let (left, right) = (View::rows(&left, width), View::rows(&right, 4 * width));
    let mut times: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(product(Start::Zero, left, &right));
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (8 * tokens * width * width) as f64 / quantile(&times, 0.5) / 1e9
}

fn random_examples(model: &Model, work: Work) -> Vec<Example> {
    let vocab = model.vocab_size();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let example = |row: usize| Example {
        task: 0,
        ids: (0..work.seq)
            .map(|_| rng.random_range(0..vocab as u32))
            .collect(),
        target: match model.classes() {
            None => Target::Completion(1),
            Some(classes) => Target::Class {
                output: row % classes,
                of: 0..classes,
            },
        },
        input: String::new(),
        expected: String::new(),
    };
    (0..work.batch).map(example).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::Gpt2Config;
    use peft_core::{Init, Method, adapt};

    const WORK: Work = Work {
        batch: 2,
        seq: 8,
        steps: 1,
        checkpointing: false,
    };

    fn model() -> (Model, Device) {
        let device = Device::flex().autodiff();
        let model = Model::random_gpt2(
            Gpt2Config::new(64, 16, 32, 2, 2),
            &mut Init::new(0, &device),
        );
        (model.unwrap(), device)
    }

    #[test]
    fn a_measured_run_knows_its_parameters_its_memory_and_its_loss() {
        let (base, device) = model();
        let method = peft_lora::Lora::default();
        let trainable = method.parameters(&base.geometry()) as u64;
        let model = adapt(base, &method, None, &mut Init::new(0, &device)).unwrap();
        let subject = Subject {
            model,
            program: 1,
            flop: 1e6,
        };
        let figures = measure(subject, WORK, &device, || Ok(())).unwrap();
        assert_eq!(figures.trainable, trainable);
        assert_eq!(figures.memory.adapter, trainable as f64 * 4.0 / 1e6);
        assert!(figures.loss_last < figures.loss_first);
        assert!(figures.memory.activations > 0.0 && figures.step_ms > 0.0);
    }
}
