//! Adapters with learned switches: training decides which adapters, or which of their units, stay on.
//!
//! Paper: Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv
//! 1712.01312.
//! Seam: sublayers; auxiliary loss. `y' = y + z up(f(down(y)))` after the attention and after the
//! feed-forward sublayer. The gates `z` follow the hard concrete distribution while training, which
//! is exactly 0 or 1 with some probability, and take its middle value afterwards; the chance that a
//! gate is open is part of the loss.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Distribution, Int, Tensor, activation::sigmoid};
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role, Start,
    Sublayer, Tap, TapSlot, check, kernels,
};
use serde::{Deserialize, Serialize};

use crate::adapter::Kind;
use crate::bottleneck::{Bottleneck, Layers};
use crate::houlsby::HoulsbyKind;

/// Configuration of adapters with learned switches, `kind = "l0_adapter"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L0Adapter {
    /// Width of the bottlenecks.
    pub bottleneck: usize,
    /// What a gate switches.
    pub gates: Gates,
    /// Weight in the loss of the share of an adapter's gates that is open, summed over adapters.
    pub penalty: f64,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's output while training.
    pub dropout: f64,
}

/// What a gate switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gates {
    /// A whole adapter.
    Layer,
    /// One unit of its bottleneck.
    Neuron,
}

impl Default for L0Adapter {
    fn default() -> Self {
        Self {
            bottleneck: 16,
            gates: Gates::Layer,
            penalty: 0.01,
            non_linearity: Activation::Swish,
            dropout: 0.0,
        }
    }
}

impl L0Adapter {
    /// Number of gates an adapter has.
    fn count(&self) -> usize {
        match self.gates {
            Gates::Layer => 1,
            Gates::Neuron => self.bottleneck,
        }
    }
}

impl MethodConfig for L0Adapter {
    const INFO: MethodInfo = MethodInfo {
        kind: "l0_adapter",
        name: "L0 adapter",
        paper: "Louizos et al. 2018, arXiv 1712.01312",
        seam: "sublayers: attention, feed-forward; auxiliary loss",
        formula: "2 (2 m d + d + m + 1) per layer; m for 1 with a gate for each unit",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Self {
                bottleneck: 3,
                ..Self::default()
            },
            Self {
                bottleneck: 4,
                gates: Gates::Neuron,
                penalty: 0.0,
                ..Self::default()
            },
        ]
    }
}

impl Method for L0Adapter {
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        check::size("bottleneck", self.bottleneck)?;
        check::dropout(self.dropout)?;
        match self.penalty >= 0.0 && self.penalty.is_finite() {
            true => Ok(()),
            false => {
                let expected = "a number from 0 up";
                Err(CoreError::bad_value("penalty", self.penalty, expected))
            }
        }
    }

    fn tap(&self, _layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        if !matches!(role, Role::AfterAttention | Role::AfterMlp) {
            return None;
        }
        let m = self.bottleneck;
        Some(TapSlot::new(GatedBottleneck {
            down: Param::from_tensor(init.normal([d, m], STD)),
            down_bias: Param::from_tensor(init.zeros([m])),
            up: Param::from_tensor(init.normal([m, d], STD)),
            up_bias: Param::from_tensor(init.zeros([d])),
            log_alpha: Param::from_tensor(init.full([self.count()], START)),
            dropout: DropoutConfig::new(self.dropout).init(),
            penalty: self.penalty,
            switches_units: self.gates == Gates::Neuron,
            non_linearity: self.non_linearity,
        }))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let (d, m) = (geometry.width, self.bottleneck);
        geometry.layers * 2 * (2 * m * d + d + m + self.count())
    }

    fn size(&self) -> Option<u64> {
        Some(self.bottleneck as u64)
    }
}

/// Standard deviation of the weights at the start, as in BERT.
const STD: f64 = 0.02;
/// Temperature of the gates, and the interval they are stretched to before they are cut to 0 and 1.
const BETA: f64 = 2.0 / 3.0;
const STRETCH: (f64, f64) = (-0.1, 1.1);
/// Where the gates start: the middle value is 1, and training closes few.
const START: f64 = 3.0;

/// A bottleneck with a residual and gates.
#[derive(Module, Debug)]
pub struct GatedBottleneck {
    /// `[d, m]`
    down: Param<Tensor<2>>,
    /// `[m]`
    down_bias: Param<Tensor<1>>,
    /// `[m, d]`
    up: Param<Tensor<2>>,
    /// `[d]`
    up_bias: Param<Tensor<1>>,
    /// `[1]` or `[m]`
    log_alpha: Param<Tensor<1>>,
    dropout: Dropout,
    penalty: f64,
    switches_units: bool,
    #[module(skip)]
    non_linearity: Activation,
}

/// `sigmoid` stretched and cut, so that it reaches 0 and 1.
fn hard(logits: Tensor<1>) -> Tensor<1> {
    let (low, high) = STRETCH;
    let stretched = sigmoid(logits).mul_scalar(high - low).add_scalar(low);
    stretched.clamp(0.0, 1.0)
}

impl GatedBottleneck {
    /// The gates: drawn while training, their middle values otherwise.
    fn gates(&self) -> Tensor<1> {
        let log_alpha = self.log_alpha.val();
        if !log_alpha.device().is_autodiff() {
            return hard(log_alpha);
        }
        let u = log_alpha.random_like(Distribution::Uniform(1e-6, 1.0 - 1e-6));
        let noise = u.clone().log() - (u.neg().add_scalar(1.0)).log();
        hard((log_alpha + noise).div_scalar(BETA))
    }

    /// The mean chance that a gate is not 0, `[1]`.
    fn open(&self) -> Tensor<1> {
        let (low, high) = STRETCH;
        let shift = BETA * (-low / high).ln();
        sigmoid(self.log_alpha.val().sub_scalar(shift)).mean()
    }
}

impl Tap for GatedBottleneck {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        if self.penalty > 0.0 && y.device().is_autodiff() {
            pass.add_loss(self.open().mul_scalar(self.penalty));
        }
        let gates = self.gates().unsqueeze::<3>();
        let h = kernels::linear(y.clone(), self.down.val(), Some(self.down_bias.val()));
        let h = self.non_linearity.forward(h);
        let u = match self.switches_units {
            true => kernels::linear(h * gates, self.up.val(), Some(self.up_bias.val())),
            false => kernels::linear(h, self.up.val(), Some(self.up_bias.val())) * gates,
        };
        self.dropout.forward(u) + y
    }

    /// The gates are part of the weights then, and units behind closed ones are left out.
    fn settled(&self, _pass: &Pass<'_>) -> Option<TapSlot> {
        let [_, m] = self.down.dims();
        let gates = hard(self.log_alpha.val().detach());
        let bias = self.up_bias.val().detach();
        let (gates, bias) = match self.switches_units {
            true => (gates, bias),
            false => (gates.clone().expand([m]), bias * gates),
        };
        let open = open_units(&gates);
        let layers = Layers {
            down: self.down.val().detach().select(1, open.clone()),
            down_bias: self.down_bias.val().detach().select(0, open.clone()),
            up: (self.up.val().detach() * gates.unsqueeze_dim(1)).select(0, open),
            up_bias: bias,
        };
        let plain = Bottleneck::of(layers, self.non_linearity, (None, 1.0));
        Some(HoulsbyKind::slot(plain))
    }
}

/// The numbers of the units whose gates are not closed; the first where all are, for a bottleneck
/// has a width.
fn open_units(gates: &Tensor<1>) -> Tensor<1, Int> {
    let values = gates.to_data().convert::<f32>();
    let values = values.iter::<f32>().enumerate();
    let mut open: Vec<i64> = values
        .filter(|(_, gate)| *gate > 0.0)
        .map(|(unit, _)| unit as i64)
        .collect();
    if open.is_empty() {
        open.push(0);
    }
    Tensor::from_data(&open[..], &gates.device())
}

#[cfg(test)]
mod tests;
