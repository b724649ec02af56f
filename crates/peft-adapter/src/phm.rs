//! Parametrised hypercomplex multiplication: linear layers that are sums of Kronecker products.
//!
//! `W = sum_i kron(rule[i], left[i] right[i])`: `n` small matrices `rule[i]` of `[n, n]`, which the
//! layers of a model may share, and `n` products of rank `r` of every layer's own.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Activation, Init, Pass, kernels};

use crate::bottleneck::{Bottleneck, Layers, Scaling, scaled};

/// Sizes of a hypercomplex bottleneck.
#[derive(Clone, Copy, Debug)]
pub struct PhmShape {
    /// Width of the model.
    pub d: usize,
    /// Width of the bottleneck.
    pub m: usize,
    /// Number of Kronecker products, a divisor of both.
    pub n: usize,
    /// Rank of the right-hand factors.
    pub rank: usize,
    /// Whether the left-hand factors are those the whole model shares.
    pub shared_rule: bool,
}

/// The rules of a whole model, `[n, n, n]`.
#[derive(Module, Debug)]
pub struct PhmRule {
    rule: Param<Tensor<3>>,
}

impl PhmRule {
    /// Rules that every layer shares.
    pub fn new(n: usize, std: f64, init: &mut Init) -> Self {
        Self {
            rule: Param::from_tensor(init.normal([n, n, n], std)),
        }
    }
}

/// A hypercomplex linear layer with a bias.
#[derive(Module, Debug)]
pub struct PhmLinear {
    /// Rules of its own, `[n, n, n]`; those of the pass where there are none.
    rule: Option<Param<Tensor<3>>>,
    /// `[n, d_in / n, rank]`
    left: Param<Tensor<3>>,
    /// `[n, rank, d_out / n]`
    right: Param<Tensor<3>>,
    /// `[d_out]`
    bias: Param<Tensor<1>>,
}

/// Standard deviation of rules that a layer has for itself.
const OWN_RULE: f64 = 0.01;

impl PhmLinear {
    /// A layer of these widths.
    fn new((d_in, d_out): (usize, usize), shape: PhmShape, init: &mut Init) -> Self {
        let PhmShape { n, rank, .. } = shape;
        let (rows, columns) = (d_in / n, d_out / n);
        // Glorot's deviation of each small matrix.
        let glorot = |a: usize, b: usize| (2.0 / (a + b) as f64).sqrt();
        let own_rule = (!shape.shared_rule).then(|| init.normal([n, n, n], OWN_RULE));
        let left = init.normal([n, rows, rank], glorot(rows, rank));
        let right = init.normal([n, rank, columns], glorot(rank, columns));
        Self {
            rule: own_rule.map(Param::from_tensor),
            left: Param::from_tensor(left),
            right: Param::from_tensor(right),
            bias: Param::from_tensor(init.zeros([d_out])),
        }
    }

    /// The whole matrix, `[d_in, d_out]`.
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let rule = match &self.rule {
            Some(rule) => rule.val(),
            None => pass.shared::<PhmRule>().rule.val(),
        };
        let small = self.left.val().matmul(self.right.val());
        let [n, rows, columns] = small.dims();
        // One product over the n matrices gives every entry of every Kronecker block.
        let rule = rule.reshape([n, n * n]).transpose();
        let blocks = rule.matmul(small.reshape([n, rows * columns]));
        let blocks = blocks.reshape([n, n, rows, columns]).swap_dims(1, 2);
        blocks.reshape([n * rows, n * columns])
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        kernels::linear(x, self.weight(pass), Some(self.bias.val()))
    }
}

/// A bottleneck whose two layers are hypercomplex.
#[derive(Module, Debug)]
pub struct PhmBottleneck {
    down: PhmLinear,
    up: PhmLinear,
    /// `[1]` or `[d]`
    scaling: Option<Param<Tensor<1>>>,
    factor: f64,
    dropout: Dropout,
    #[module(skip)]
    non_linearity: Activation,
}

impl PhmBottleneck {
    /// A bottleneck of this shape.
    pub fn new(
        shape: PhmShape,
        non_linearity: Activation,
        scaling: Scaling,
        init: &mut Init,
    ) -> Self {
        let PhmShape { d, m, .. } = shape;
        Self {
            down: PhmLinear::new((d, m), shape, init),
            up: PhmLinear::new((m, d), shape, init),
            scaling: scaling.param(d, init),
            factor: scaling.factor(),
            dropout: DropoutConfig::new(0.0).init(),
            non_linearity,
        }
    }

    /// The bottleneck with dropout on its output while training.
    #[must_use]
    pub fn with_dropout(self, dropout: f64) -> Self {
        let dropout = DropoutConfig::new(dropout).init();
        Self { dropout, ..self }
    }

    /// Closed form of the number of parameters, shared rules aside.
    pub fn parameters(shape: PhmShape, scaling: Scaling) -> usize {
        let PhmShape { d, m, n, rank, .. } = shape;
        let rules = if shape.shared_rule { 0 } else { 2 * n * n * n };
        2 * rank * (d + m) + d + m + rules + scaling.parameters(d)
    }

    /// The plain bottleneck that computes the same, its matrices multiplied out for good.
    pub(crate) fn plain(&self, pass: &Pass<'_>) -> Bottleneck {
        let layers = Layers {
            down: self.down.weight(pass).detach(),
            down_bias: self.down.bias.val().detach(),
            up: self.up.weight(pass).detach(),
            up_bias: self.up.bias.val().detach(),
        };
        let scaling = (self.scaling.clone(), self.factor);
        Bottleneck::of(layers, self.non_linearity, scaling)
    }

    /// The bottleneck's output, without any residual.
    pub fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let h = self.non_linearity.forward(self.down.forward(x, pass));
        let y = self.up.forward(h, pass);
        self.dropout
            .forward(scaled(y, self.scaling.as_ref(), self.factor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// Kronecker product by its definition.
    fn kron(a: [[f32; 2]; 2], b: [[f32; 2]; 1]) -> [[f32; 4]; 2] {
        let entry = |i: usize, j: usize| a[i][j / 2] * b[0][j % 2];
        std::array::from_fn(|i| std::array::from_fn(|j| entry(i, j)))
    }

    #[test]
    fn the_weight_is_the_sum_of_the_kronecker_products() {
        let device = Device::flex();
        let tensor = |values: &[f32], shape: [usize; 3]| {
            Param::from_tensor(Tensor::<3>::from_data(
                TensorData::new(values.to_vec(), shape),
                &device,
            ))
        };
        // Two products of [2, 2] with [1, 2].
        let layer = PhmLinear {
            rule: Some(tensor(
                &[1.0, 2.0, 3.0, 4.0, -1.0, 0.5, 2.0, 0.0],
                [2, 2, 2],
            )),
            left: tensor(&[2.0, -3.0], [2, 1, 1]),
            right: tensor(&[1.0, 5.0, 0.5, 1.0], [2, 1, 2]),
            bias: Param::from_tensor(Tensor::zeros([4], &device)),
        };
        let (one, two) = (
            kron([[1.0, 2.0], [3.0, 4.0]], [[2.0, 10.0]]),
            kron([[-1.0, 0.5], [2.0, 0.0]], [[-1.5, -3.0]]),
        );
        let expected: Vec<f32> = one
            .iter()
            .flatten()
            .zip(two.iter().flatten())
            .map(|(a, b)| a + b)
            .collect();
        let weight = layer.weight(&Pass::new()).into_data();
        assert_eq!(weight.try_to_vec::<f32>().unwrap(), expected);
    }
}
