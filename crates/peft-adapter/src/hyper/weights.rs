//! The weights that the network makes of one adapter.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::{Activation, Pass, Sublayer, Tap, kernels};

/// The weights of one adapter for every row of a batch, or one for all rows.
pub(super) struct Weights {
    /// `[rows, d, m]`
    pub(super) down: Tensor<3>,
    /// `[rows, m]`
    pub(super) down_bias: Tensor<2>,
    /// `[rows, m, d]`
    pub(super) up: Tensor<3>,
    /// `[rows, d]`
    pub(super) up_bias: Tensor<2>,
    /// Factors and shifts of the norm, `[rows, d]` each.
    pub(super) norm: Option<(Tensor<2>, Tensor<2>)>,
}

impl Weights {
    /// What the adapter adds to `y`.
    pub(super) fn forward(self, y: Tensor<3>, non_linearity: Activation) -> Tensor<3> {
        let h = affine(y, self.down, self.down_bias);
        let u = affine(non_linearity.forward(h), self.up, self.up_bias);
        let Some((gamma, beta)) = self.norm else {
            return u;
        };
        let ([_, _, d], device) = (u.dims(), u.device());
        let (ones, zeros) = (Tensor::ones([d], &device), Tensor::zeros([d], &device));
        let normal = kernels::layer_norm(u, ones, zeros, 1e-5);
        normal * gamma.unsqueeze_dim(1) + beta.unsqueeze_dim(1)
    }
}

/// `x W + b` with a weight and a bias for every row of the batch, or one for all.
fn affine(x: Tensor<3>, weight: Tensor<3>, bias: Tensor<2>) -> Tensor<3> {
    match weight.dims()[0] {
        1 => kernels::linear(x, weight.squeeze_dim(0), Some(bias.squeeze_dim(0))),
        _ => x.matmul(weight) + bias.unsqueeze_dim(1),
    }
}

/// An adapter behind a sublayer with weights that were made for good, of every task or one for all.
#[derive(Module, Debug)]
pub(super) struct MadeAdapter {
    /// `[tasks, d, m]`
    down: Param<Tensor<3>>,
    /// `[tasks, m]`
    down_bias: Param<Tensor<2>>,
    /// `[tasks, m, d]`
    up: Param<Tensor<3>>,
    /// `[tasks, d]`
    up_bias: Param<Tensor<2>>,
    /// `[tasks, d]` each
    norm: Option<(Param<Tensor<2>>, Param<Tensor<2>>)>,
    #[module(skip)]
    non_linearity: Activation,
}

fn made<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor.detach())
}

impl MadeAdapter {
    pub(super) fn new(weights: Weights, non_linearity: Activation) -> Self {
        Self {
            down: made(weights.down),
            down_bias: made(weights.down_bias),
            up: made(weights.up),
            up_bias: made(weights.up_bias),
            norm: weights.norm.map(|(gamma, beta)| (made(gamma), made(beta))),
            non_linearity,
        }
    }

    /// The weights for rows of these tasks.
    fn of(&self, tasks: Option<Tensor<1, Int>>) -> Weights {
        let norm = self.norm.as_ref();
        let tasks = tasks.as_ref();
        Weights {
            down: rows(&self.down, tasks),
            down_bias: rows(&self.down_bias, tasks),
            up: rows(&self.up, tasks),
            up_bias: rows(&self.up_bias, tasks),
            norm: norm.map(|(gamma, beta)| (rows(gamma, tasks), rows(beta, tasks))),
        }
    }
}

/// The values for rows of these tasks; of the first where there is one or nothing is said.
fn rows<const D: usize>(values: &Param<Tensor<D>>, tasks: Option<&Tensor<1, Int>>) -> Tensor<D> {
    let values = values.val();
    match tasks {
        Some(tasks) if values.dims()[0] > 1 => values.select(0, tasks.clone()),
        _ => values.narrow(0, 0, 1),
    }
}

impl Tap for MadeAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        let weights = self.of(pass.text().tasks);
        weights.forward(y.clone(), self.non_linearity) + y
    }
}
