//! The bottleneck every adapter of this crate is made of: down, non-linearity, up.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Activation, CoreError, Gate, Init, Pass, kernels};
use serde::{Deserialize, Serialize};

/// A factor on a bottleneck's output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, `learned` or `channel`")]
pub enum Scaling {
    /// A constant.
    Fixed(f64),
    /// Trained.
    Learned(LearnedScaling),
}

/// A trained factor, which starts at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedScaling {
    /// One number.
    Learned,
    /// One for every feature.
    Channel,
}

impl Scaling {
    /// One trained number.
    pub fn learned() -> Self {
        Self::Learned(LearnedScaling::Learned)
    }

    /// The trained values in a model of width `d` at their start.
    pub(crate) fn param(self, d: usize, init: &Init) -> Option<Param<Tensor<1>>> {
        match self.parameters(d) {
            0 => None,
            count => Some(Param::from_tensor(init.full([count], 1.0))),
        }
    }

    /// The constant factor; 1 where it is trained.
    pub(crate) fn factor(self) -> f64 {
        match self {
            Self::Fixed(factor) => factor,
            Self::Learned(_) => 1.0,
        }
    }

    /// Number of trained values in a model of width `d`.
    pub(crate) fn parameters(self, d: usize) -> usize {
        match self {
            Self::Fixed(_) => 0,
            Self::Learned(LearnedScaling::Learned) => 1,
            Self::Learned(LearnedScaling::Channel) => d,
        }
    }

    pub(crate) fn check(self, key: &str) -> Result<(), CoreError> {
        match self {
            Self::Fixed(factor) if !factor.is_finite() => {
                Err(CoreError::bad_value(key, factor, "a finite number"))
            }
            _ => Ok(()),
        }
    }
}

/// How a bottleneck starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterInit {
    /// Normal weights of deviation 0.02, zero biases: BERT's own start, AdapterHub's default.
    Bert,
    /// Kaiming-uniform down, zero up: exactly the identity at the start (He et al. 2022).
    Mam,
    /// Normal weights of deviation 0.01 cut at two deviations, zero biases (Houlsby et al. 2019).
    Houlsby,
}

/// A bottleneck's output times the trained values if there are any, the constant otherwise.
pub(crate) fn scaled(y: Tensor<3>, values: Option<&Param<Tensor<1>>>, factor: f64) -> Tensor<3> {
    match values {
        Some(values) => y * values.val().unsqueeze(),
        None if factor == 1.0 => y,
        None => y.mul_scalar(factor),
    }
}

/// `up(f(down(x)))` with biases: `2 m d + d + m` parameters.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// `[d, m]`
    down: Param<Tensor<2>>,
    /// `[m]`
    down_bias: Param<Tensor<1>>,
    /// `[m, d]`
    up: Param<Tensor<2>>,
    /// `[d]`
    up_bias: Param<Tensor<1>>,
    /// `[1]` or `[d]`
    scaling: Option<Param<Tensor<1>>>,
    factor: f64,
    /// `[1]` or `[d]`
    skip_scaling: Option<Param<Tensor<1>>>,
    skip_factor: f64,
    gate: Option<Gate>,
    dropout: Dropout,
    stochastic_depth: Dropout,
    #[module(skip)]
    non_linearity: Activation,
}

/// The values of a bottleneck's two layers.
pub(crate) struct Layers {
    /// `[d, m]`
    pub(crate) down: Tensor<2>,
    /// `[m]`
    pub(crate) down_bias: Tensor<1>,
    /// `[m, d]`
    pub(crate) up: Tensor<2>,
    /// `[d]`
    pub(crate) up_bias: Tensor<1>,
}

impl Bottleneck {
    /// A bottleneck of these values, with a factor on its output.
    pub(crate) fn of(
        layers: Layers,
        non_linearity: Activation,
        (scaling, factor): (Option<Param<Tensor<1>>>, f64),
    ) -> Self {
        Self {
            down: Param::from_tensor(layers.down),
            down_bias: Param::from_tensor(layers.down_bias),
            up: Param::from_tensor(layers.up),
            up_bias: Param::from_tensor(layers.up_bias),
            scaling,
            factor,
            skip_scaling: None,
            skip_factor: 1.0,
            gate: None,
            dropout: DropoutConfig::new(0.0).init(),
            stochastic_depth: DropoutConfig::new(0.0).init(),
            non_linearity,
        }
    }

    /// A bottleneck of width `m` in a model of width `d`.
    pub fn new(
        (d, m): (usize, usize),
        non_linearity: Activation,
        scaling: Scaling,
        start: AdapterInit,
        init: &mut Init,
    ) -> Self {
        let (down, up) = match start {
            AdapterInit::Bert => (init.normal([d, m], 0.02), init.normal([m, d], 0.02)),
            AdapterInit::Mam => (init.kaiming_uniform([d, m], d), init.zeros([m, d])),
            AdapterInit::Houlsby => (
                init.truncated_normal([d, m], 0.01),
                init.truncated_normal([m, d], 0.01),
            ),
        };
        let layers = Layers {
            down,
            down_bias: init.zeros([m]),
            up,
            up_bias: init.zeros([d]),
        };
        let scaling = (scaling.param(d, init), scaling.factor());
        Self::of(layers, non_linearity, scaling)
    }

    /// The bottleneck with a factor on what it is added to, in a model of width `d`.
    #[must_use]
    pub fn with_skip_scaling(self, scaling: Scaling, d: usize, init: &Init) -> Self {
        Self {
            skip_scaling: scaling.param(d, init),
            skip_factor: scaling.factor(),
            ..self
        }
    }

    /// The bottleneck left out of whole rows of the batch while training, with this probability.
    #[must_use]
    pub fn with_stochastic_depth(self, probability: f64) -> Self {
        let stochastic_depth = DropoutConfig::new(probability).init();
        Self {
            stochastic_depth,
            ..self
        }
    }

    /// The bottleneck with dropout on its output while training.
    #[must_use]
    pub fn with_dropout(self, dropout: f64) -> Self {
        let dropout = DropoutConfig::new(dropout).init();
        Self { dropout, ..self }
    }

    /// The bottleneck with a gate on its output.
    #[must_use]
    pub fn with_gate(self, gate: Option<Gate>) -> Self {
        Self { gate, ..self }
    }

    /// Closed form of the number of parameters.
    pub fn parameters(d: usize, m: usize, scaling: Scaling) -> usize {
        2 * m * d + d + m + scaling.parameters(d)
    }

    /// The bottleneck's output for `x`, added to `skip` times its factor.
    pub fn add_to(&self, skip: Tensor<3>, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.forward(x, pass) + scaled(skip, self.skip_scaling.as_ref(), self.skip_factor)
    }

    /// The bottleneck's output, without any residual.
    pub fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let gate = self.gate.as_ref().map(|gate| gate.forward(x.clone(), pass));
        let h = kernels::linear(x, self.down.val(), Some(self.down_bias.val()));
        let h = self.non_linearity.forward(h);
        let y = kernels::linear(h, self.up.val(), Some(self.up_bias.val()));
        let y = match self.stochastic_depth.prob > 0.0 {
            true => {
                // Dropout of one number a row: a row is left out or scaled up as a whole.
                let kept = Tensor::ones([y.dims()[0], 1, 1], &y.device());
                y * self.stochastic_depth.forward(kept)
            }
            false => y,
        };
        let y = scaled(y, self.scaling.as_ref(), self.factor);
        let y = self.dropout.forward(y);
        match gate {
            Some(gate) => y * gate,
            None => y,
        }
    }
}
