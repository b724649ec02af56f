//! Timing of training steps on random tokens: the same work for every method and machine.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use models::Model;
use peft_core::{Adapted, Geometry, Host, Method, Part, state};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::adamw::AdamW;
use crate::batching::collate;
use crate::data::{Example, Target};
use crate::memory;
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
}

/// The model under the clock.
pub struct Subject {
    /// The model with its method.
    pub model: Adapted<Model>,
    /// Resident set before there was a model, in bytes.
    pub program: u64,
    /// Floating-point operations of a step, from [`flops`].
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
    /// 10^9 floating-point operations a second at the median step, of those in [`flops`].
    pub gflops: f64,
    /// 10^9 floating-point operations of a step.
    pub gflop_per_step: f64,
    /// 10^9 operations a second of one large product alone, on the same threads right after: the
    /// ceiling of `gflops`. None where the work was not done on this processor's `cpu` device.
    pub ceiling_gflops: Option<f64>,
    /// Largest resident set of the process in 10^6 bytes.
    pub peak_rss_mb: f64,
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

/// Trains on one batch of random tokens again and again, and times it.
///
/// # Errors
/// If the model does not take such sequences.
pub fn measure(subject: Subject, work: Work, device: &Device) -> Result<Figures> {
    let Subject {
        model,
        program,
        flop,
    } = subject;
    let host = &model.host;
    anyhow::ensure!(
        work.batch > 0 && work.seq > 1 && work.steps > 0,
        "expected at least 1 sequence of 2 tokens and 1 step"
    );
    let examples = random_examples(host.vocab_size(), host.is_causal(), work);
    let rows: Vec<&Example> = examples.iter().collect();
    let width = host.geometry().width;
    let on_cpu = device.clone().inner() == Device::flex();
    let (trainable, adapter) = trained_size(&model);
    let all = state::parameters(&model);
    let total = all.iter().map(|row| row.numel() as u64).sum();
    let bytes: u64 = all.iter().map(|row| row.bytes as u64).sum();

    let schedule = Schedule::new(Decay::Constant, 1e-3, 0, WARM_UP + work.steps);
    let mut stepper = Stepper::new(model, AdamW::new(0.01).into(), schedule, 0.0);
    let (mut times, mut losses, mut step_peak) = (Vec::new(), Vec::new(), 0);
    for step in 0..WARM_UP + work.steps {
        memory::take_peak_allocated();
        let (before, start) = (memory::allocated(), Instant::now());
        let batch = collate(&rows, &stepper.model().host, device);
        losses.push(stepper.step(vec![batch]));
        if step >= WARM_UP {
            times.push(start.elapsed().as_secs_f64());
            step_peak = step_peak.max(memory::take_peak_allocated().saturating_sub(before));
        }
    }
    times.sort_by(f64::total_cmp);
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    let median = quantile(0.5);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    Ok(Figures {
        tokens_per_s: (work.batch * work.seq) as f64 / median,
        step_ms: median * 1e3,
        step_ms_p95: quantile(0.95) * 1e3,
        gflops: flop / median / 1e9,
        gflop_per_step: flop / 1e9,
        ceiling_gflops: on_cpu.then(|| ceiling(work.batch * work.seq, width)),
        peak_rss_mb: mb(memory::peak_rss()),
        trainable,
        total,
        loss_first: losses[0],
        loss_last: *losses.last().expect("at least one step"),
        memory: Parts {
            program: mb(program),
            base: mb(bytes - adapter),
            adapter: mb(adapter),
            gradients: mb(adapter),
            optimizer: mb(2 * adapter),
            activations: mb(step_peak.saturating_sub(adapter)),
        },
    })
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
    (8 * tokens * width * width) as f64 / times[REPEATS / 2] / 1e9
}

fn random_examples(vocab: usize, causal: bool, work: Work) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let example = |row: usize| Example {
        ids: (0..work.seq)
            .map(|_| rng.random_range(0..vocab as u32))
            .collect(),
        target: match causal {
            true => Target::Completion(1),
            false => Target::Class(row % 2),
        },
        input: String::new(),
        expected: String::new(),
    };
    (0..work.batch).map(example).collect()
}

/// Floating-point operations of the matrix products of one training step.
///
/// Counted as the work needs them, whatever an implementation does beside: forward, gradients for
/// activations, and gradients for the weights that train. Element-wise work is left out.
pub fn flops(model: &Model, method: &dyn Method, work: Work) -> f64 {
    let geometry = model.geometry();
    let tokens = (work.batch * work.seq) as f64;
    let in_sites: f64 = geometry
        .sites
        .iter()
        .map(|s| (s.d_in * s.d_out) as f64)
        .sum();
    let trained_base: f64 = geometry
        .params
        .iter()
        .filter(|p| method.trains(p) && p.shape.len() == 2 && p.part == Part::Linear)
        .map(|p| p.numel() as f64)
        .sum();
    // Forward, and the gradient for the activations; an adapter's weights a third time.
    let blocks = 4.0 * tokens * in_sites + 2.0 * tokens * trained_base;
    let unfrozen = geometry.count(|p| method.trains(p));
    let added = method.parameters(&geometry).saturating_sub(unfrozen);
    let added = 6.0 * tokens * added as f64;
    // Scores and their product with the values, forward once and backward twice.
    let context = if model.is_causal() { 0.5 } else { 1.0 } * work.seq as f64;
    let attention = 12.0 * tokens * context * (geometry.width * geometry.layers) as f64;
    blocks + added + attention + head_flops(model, &geometry, method, work)
}

/// The share of a language model's head.
fn head_flops(model: &Model, geometry: &Geometry, method: &dyn Method, work: Work) -> f64 {
    if !model.is_causal() {
        return 0.0;
    }
    let trains_head = geometry
        .params
        .iter()
        .any(|p| p.shape.first() == Some(&model.vocab_size()) && method.trains(p));
    let products = if trains_head { 6.0 } else { 4.0 };
    let places = (work.batch * (work.seq - 1)) as f64;
    products * places * (geometry.width * model.vocab_size()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::Gpt2Config;
    use peft_core::{Init, adapt};

    const WORK: Work = Work {
        batch: 2,
        seq: 8,
        steps: 1,
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
    fn operations_are_counted_as_the_products_need_them() {
        let (model, _) = model();
        let (tokens, sites, head) = (16.0, (2 * 12 * 32 * 32) as f64, (32 * 64) as f64);
        let attention = 12.0 * tokens * 4.0 * 64.0;
        let places = 14.0;
        let frozen = 4.0 * tokens * sites + attention + 4.0 * places * head;
        let lora = peft_lora::Lora::default();
        let added = lora.parameters(&model.geometry()) as f64;
        assert_eq!(flops(&model, &lora, WORK), frozen + 6.0 * tokens * added);
        let full = frozen + 2.0 * tokens * sites + 2.0 * places * head;
        assert_eq!(flops(&model, &peft_adapter::Full {}, WORK), full);
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
        let figures = measure(subject, WORK, &device).unwrap();
        assert_eq!(figures.trainable, trainable);
        assert_eq!(figures.memory.adapter, trainable as f64 * 4.0 / 1e6);
        assert!(figures.loss_last < figures.loss_first);
        assert!(figures.memory.activations > 0.0 && figures.step_ms > 0.0);
    }
}
