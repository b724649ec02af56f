//! Mixtures of adapters: several small bottlenecks a layer, of which every token uses a few.
//!
//! Paper: Shazeer et al. 2017, "Outrageously Large Neural Networks: The Sparsely-Gated
//! Mixture-of-Experts Layer", arXiv 1701.06538; the loss that balances the load is that of Fedus et
//! al. 2021 (Switch Transformers), arXiv 2101.03961.
//! Seam: sublayers; auxiliary loss. `y' = y + sum over the chosen i of p_i up_i(f(down_i(y)))` after
//! the feed-forward sublayer, where `p = softmax(y G)` and the `top_k` largest are chosen.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{IndexingUpdateOp, Tensor, activation::softmax};
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role, Start,
    Sublayer, Tap, TapSlot, check, kernels,
};
use serde::{Deserialize, Serialize};

/// Configuration of mixtures of adapters, `kind = "mixture"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixture {
    /// Width of every expert's bottleneck.
    pub bottleneck: usize,
    /// Number of experts a layer has.
    pub experts: usize,
    /// Number of experts a token uses.
    pub top_k: usize,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the output while training.
    pub dropout: f64,
    /// Weight of the loss that spreads the tokens over the experts.
    pub balance: f64,
}

impl Default for Mixture {
    fn default() -> Self {
        Self {
            bottleneck: 8,
            experts: 4,
            top_k: 2,
            non_linearity: Activation::Relu,
            dropout: 0.0,
            balance: 0.01,
        }
    }
}

impl MethodConfig for Mixture {
    const INFO: MethodInfo = MethodInfo {
        kind: "mixture",
        name: "Mixture of adapters",
        paper: "Shazeer et al. 2017, arXiv 1701.06538",
        seam: "sublayer: feed-forward; auxiliary loss",
        formula: "E (2 m d + d + m) + E d per layer",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };

    fn examples() -> Vec<Self> {
        let small = Self {
            bottleneck: 2,
            experts: 3,
            ..Self::default()
        };
        vec![
            small.clone(),
            Self {
                top_k: 1,
                balance: 0.0,
                non_linearity: Activation::Swish,
                ..small.clone()
            },
            Self { top_k: 3, ..small },
        ]
    }
}

impl Method for Mixture {
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        check::size("bottleneck", self.bottleneck)?;
        check::size("experts", self.experts)?;
        check::size("experts * bottleneck", self.experts * self.bottleneck)?;
        check::dropout(self.dropout)?;
        if !(1..=self.experts).contains(&self.top_k) {
            let expected = format!("from 1 to the {} experts there are", self.experts);
            return Err(CoreError::bad_value("top_k", self.top_k, &expected));
        }
        if !(self.balance >= 0.0 && self.balance.is_finite()) {
            let expected = "a number from 0 up";
            return Err(CoreError::bad_value("balance", self.balance, expected));
        }
        Ok(())
    }

    fn tap(&self, _layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        (role == Role::AfterMlp).then(|| TapSlot::new(MixtureAdapter::new(self, d, init)))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let (d, m) = (geometry.width, self.bottleneck);
        geometry.layers * self.experts * (2 * m * d + d + m + d)
    }

    fn size(&self) -> Option<u64> {
        Some(self.bottleneck as u64)
    }
}

/// The experts of a layer side by side, and the gate that chooses among them.
#[derive(Module, Debug)]
pub struct MixtureAdapter {
    /// `[d, experts]`
    gate: Param<Tensor<2>>,
    /// `[d, experts * m]`
    down: Param<Tensor<2>>,
    /// `[experts * m]`
    down_bias: Param<Tensor<1>>,
    /// `[experts * m, d]`
    up: Param<Tensor<2>>,
    /// `[experts, d]`
    up_bias: Param<Tensor<2>>,
    dropout: Dropout,
    top_k: usize,
    balance: f64,
    #[module(skip)]
    non_linearity: Activation,
}

/// Standard deviation of the weights at the start, as in BERT.
const STD: f64 = 0.02;

impl MixtureAdapter {
    fn new(method: &Mixture, d: usize, init: &mut Init) -> Self {
        let experts = method.experts;
        let inner = experts * method.bottleneck;
        Self {
            gate: Param::from_tensor(init.normal([d, experts], STD)),
            down: Param::from_tensor(init.normal([d, inner], STD)),
            down_bias: Param::from_tensor(init.zeros([inner])),
            up: Param::from_tensor(init.normal([inner, d], STD)),
            up_bias: Param::from_tensor(init.zeros([experts, d])),
            dropout: DropoutConfig::new(method.dropout).init(),
            top_k: method.top_k,
            balance: method.balance,
            non_linearity: method.non_linearity,
        }
    }

    /// 1 at the experts of the largest probabilities, 0 at the others, `[batch, sequence, experts]`.
    fn chosen(&self, probabilities: &Tensor<3>) -> Tensor<3> {
        let (_, places) = probabilities
            .clone()
            .detach()
            .topk_with_indices(self.top_k, 2);
        let [batch, seq, _] = probabilities.dims();
        let device = probabilities.device();
        let ones = Tensor::ones([batch, seq, self.top_k], &device);
        Tensor::zeros(probabilities.dims(), &device).scatter(2, places, ones, IndexingUpdateOp::Add)
    }

    /// `experts * sum of share_i * probability_i` over the real tokens: 1 where all experts get as
    /// much, more where some get more.
    fn imbalance(&self, probabilities: Tensor<3>, chosen: Tensor<3>, pass: &Pass<'_>) -> Tensor<1> {
        let [batch, seq, experts] = probabilities.dims();
        let mask = pass
            .text()
            .real_tokens([batch, seq], &probabilities.device());
        let count = mask.clone().sum().clamp_min(1.0);
        let mean = |t: Tensor<3>| {
            let sums = (t * mask.clone())
                .reshape([batch * seq, experts])
                .sum_dim(0);
            sums.reshape([experts]) / count.clone()
        };
        let share = mean(chosen).div_scalar(self.top_k as f64);
        (share * mean(probabilities))
            .sum()
            .mul_scalar(experts as f64)
    }
}

impl Tap for MixtureAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        let [batch, seq, _] = y.dims();
        let probabilities = softmax(kernels::linear(y.clone(), self.gate.val(), None), 2);
        let chosen = self.chosen(&probabilities);
        if self.balance > 0.0 && y.device().is_autodiff() {
            let loss = self.imbalance(probabilities.clone(), chosen.clone(), pass);
            pass.add_loss(loss.mul_scalar(self.balance));
        }
        let weights = probabilities * chosen;
        // All experts in one product; those not chosen are weighted with 0.
        let h = kernels::linear(y.clone(), self.down.val(), Some(self.down_bias.val()));
        let h = self.non_linearity.forward(h);
        let [_, _, inner] = h.dims();
        let [_, _, experts] = weights.dims();
        let h = h.reshape([batch, seq, experts, inner / experts]);
        let h = h * weights.clone().unsqueeze_dim::<4>(3);
        let u = kernels::linear(h.reshape([batch, seq, inner]), self.up.val(), None);
        let u = u + kernels::linear(weights, self.up_bias.val(), None);
        self.dropout.forward(u) + y
    }
}

#[cfg(test)]
mod tests;
