//! Adversarial training: the embedded text is changed a little so that the loss rises, and the model
//! learns to withstand the change.

use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::batching::TrainBatch;
use crate::checkpointing::draw;
use crate::trainee::{Trainee, scale_gradients};

/// How the change is found. It is added to the embedded tokens, before positions, and its size is
/// the Euclidean norm over all tokens of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Adversarial {
    /// Fast gradient method (Miyato et al. 2017, arXiv 1605.07725): one step along the gradient; the
    /// losses with and without the change are added.
    Fgm {
        /// Size of the change.
        epsilon: f64,
    },
    /// FreeLB (Zhu et al. 2020, arXiv 1909.11764): several steps of projected gradient ascent, whose
    /// gradients are averaged.
    Freelb {
        /// Number of steps, each a forward and a backward pass.
        steps: usize,
        /// Length of a step of the change.
        step_size: f64,
        /// Largest size of the change.
        epsilon: f64,
        /// Expected size of the random change it starts from, up to a constant factor: its values
        /// are drawn from +-init / sqrt(number of values). `epsilon` where not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        init: Option<f64>,
    },
}

impl Adversarial {
    /// Whether the settings make sense.
    ///
    /// # Errors
    /// Names the key, what was found and what is expected.
    pub fn check(&self) -> Result<(), String> {
        let (positive, init) = match *self {
            Adversarial::Fgm { epsilon } => (vec![("epsilon", epsilon)], None),
            Adversarial::Freelb {
                steps,
                step_size,
                epsilon,
                init,
            } => {
                let steps = ("steps", steps as f64);
                let sizes = [steps, ("step_size", step_size), ("epsilon", epsilon)];
                (sizes.to_vec(), init)
            }
        };
        let valid = |value: f64| value > 0.0 && value.is_finite();
        let wrong = positive.into_iter().find(|(_, value)| !valid(*value));
        let wrong = wrong.map(|(key, value)| (key, value, "a number above 0"));
        let init = init.filter(|init| !valid(*init) && *init != 0.0);
        match wrong.or(init.map(|value| ("init", value, "0 or more"))) {
            Some((key, found, expected)) => Err(format!(
                "`train.adversarial.{key}` is {found}, expected {expected}"
            )),
            None => Ok(()),
        }
    }
}

/// Finds changes and takes gradients under them.
pub struct Adversary {
    config: Adversarial,
    /// Width of an embedded token.
    width: usize,
    rng: ChaCha8Rng,
}

/// A pass under one change.
struct Attack {
    loss: f32,
    grads: GradientsParams,
    /// Gradient of the change.
    slope: Tensor<3>,
}

impl Adversary {
    /// An adversary on embeddings of this width; the seed decides its random starts.
    pub fn new(config: Adversarial, width: usize, seed: u64) -> Self {
        let rng = crate::train::rng(seed, "adversary");
        Self { config, width, rng }
    }

    /// The loss of a batch and the gradients of everything that trains. The loss is the one without
    /// a change for [`Adversarial::Fgm`], the mean over the steps for [`Adversarial::Freelb`].
    ///
    /// All passes drop out the same, so that they differ by the change alone (Zhu et al. 2020,
    /// section 3.3).
    pub fn gradients(&mut self, trainee: &Trainee, batch: TrainBatch) -> (f32, GradientsParams) {
        let device = batch.batch.ids.device();
        let seed = draw(&device);
        let attack = |change| {
            device.seed(seed);
            attack(trainee, &batch, change)
        };
        match self.config {
            Adversarial::Fgm { epsilon } => {
                let none = self.start(&batch, 0.0);
                let plain = attack(none);
                let changed = attack(with_norm(plain.slope, epsilon));
                let mut sum = GradientsAccumulator::new();
                sum.accumulate(trainee, plain.grads);
                sum.accumulate(trainee, changed.grads);
                (plain.loss, sum.grads())
            }
            Adversarial::Freelb {
                steps,
                step_size,
                epsilon,
                init,
            } => {
                let mut change = self.start(&batch, init.unwrap_or(epsilon));
                let (mut losses, mut sum) = (0.0, GradientsAccumulator::new());
                for _ in 0..steps {
                    let Attack { loss, grads, slope } = attack(change.clone());
                    losses += loss;
                    sum.accumulate(trainee, grads);
                    change = within(change + with_norm(slope, step_size), epsilon);
                }
                let mean = scale_gradients(trainee, sum.grads(), 1.0 / steps as f64);
                (losses / steps as f32, mean)
            }
        }
    }

    /// Uniform values of at most `size / sqrt(n)` at the n values of a row's real tokens, and zeros
    /// at its padding.
    fn start(&mut self, batch: &TrainBatch, size: f64) -> Tensor<3> {
        let ids = &batch.batch.ids;
        let ([rows, length], device) = (ids.dims(), ids.device());
        let shape = [rows, length, self.width];
        if size == 0.0 {
            return Tensor::zeros(shape, &device);
        }
        let values: Vec<f32> = (0..rows * length * self.width)
            .map(|_| self.rng.random_range(-1.0..=1.0))
            .collect();
        let uniform = Tensor::<3>::from_data(TensorData::new(values, shape), &device);
        let mask = match &batch.batch.mask {
            Some(mask) => mask.clone(),
            None => Tensor::ones([rows, length], &device),
        };
        let mask = mask.unsqueeze_dim::<3>(2);
        let counts = mask.clone().sum_dim(1).mul_scalar(self.width as f64);
        uniform * mask * counts.sqrt().recip().mul_scalar(size)
    }
}

/// A forward and a backward pass under a change.
fn attack(trainee: &Trainee, batch: &TrainBatch, change: Tensor<3>) -> Attack {
    let change = change.autodiff().detach().require_grad();
    let mut batch = batch.clone();
    batch.batch.perturbation = Some(change.clone());
    let loss = trainee.loss(&batch);
    let mut grads = loss.backward();
    let slope = change.grad_remove(&mut grads);
    let slope = slope.expect("the loss depends on the embedded text");
    Attack {
        loss: loss.into_scalar::<f32>(),
        grads: GradientsParams::from_grads(grads, trainee),
        slope,
    }
}

/// The Euclidean norm of every row, `[batch, 1, 1]`.
fn norms(change: &Tensor<3>) -> Tensor<3> {
    let squares = change.clone() * change.clone();
    squares.sum_dim(1).sum_dim(2).sqrt()
}

/// Every row made as long as `size`. A row without a gradient stays zero.
fn with_norm(slope: Tensor<3>, size: f64) -> Tensor<3> {
    let factor = norms(&slope).clamp_min(SMALLEST).recip().mul_scalar(size);
    slope * factor
}

/// Every row made as short as `limit` where it is longer.
fn within(change: Tensor<3>, limit: f64) -> Tensor<3> {
    let factor = norms(&change).clamp_min(SMALLEST).recip().mul_scalar(limit);
    change * factor.clamp_max(1.0)
}

/// Divides in place of a norm of 0; far below the norm of any gradient that is none.
const SMALLEST: f64 = 1e-12;

#[cfg(test)]
mod tests;
