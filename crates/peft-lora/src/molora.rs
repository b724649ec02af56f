//! MoLoRA: a mixture of LoRA experts in every layer, weighed for each token by a router.
//!
//! Paper: Zadouri et al. 2023, "Pushing Mixture of Experts to the Limit: Extremely Parameter
//! Efficient MoE for Instruction Tuning", arXiv 2309.05444; keeping only the heaviest experts, and
//! the loss that spreads the tokens among them: Fedus et al. 2021, "Switch Transformers", arXiv
//! 2101.03961.
//! Seam: linear layers. `y = x W + b + scaling * sum over e of g_e(x) x A_e B_e`, where `g(x)` is the
//! softmax of `x R` and `scaling = alpha / rank`. `A` starts Kaiming-uniform and `B` zero as in LoRA,
//! the router `R` normal. With `top_k` the other gates are zero, and the kept ones stay as the softmax
//! has them, so that the router learns also where one is kept.
//!
//! All experts are one product of `experts * rank` columns: a gate scales the columns of its expert
//! between the two.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Tensor, activation::softmax};
use peft_core::{
    CoreError, Dense, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj, Projection,
    Site, Start, Targets, check, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, selected};

/// Configuration of MoLoRA, `kind = "molora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoLora {
    /// Rank of every expert.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// How many experts a layer has.
    pub experts: usize,
    /// How many experts see a token, the heaviest; all where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Weight of the loss that spreads the tokens among the experts, where `top_k` is given.
    pub balance: f64,
    /// Dropout on the input of the experts while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for MoLora {
    fn default() -> Self {
        Self {
            rank: 4,
            alpha: 8.0,
            experts: 4,
            top_k: None,
            balance: 0.01,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

/// Standard deviation of the router's start: gates nearly even.
const ROUTER_STD: f64 = 0.02;

impl MethodConfig for MoLora {
    const INFO: MethodInfo = MethodInfo {
        kind: "molora",
        name: "MoLoRA",
        paper: "Zadouri et al. 2023, arXiv 2309.05444",
        seam: "linear layers",
        formula: "experts (r (in + out) + in) per target",
        start: Start::Identity,
        mergeable: false,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            MoLora {
                rank: 2,
                experts: 3,
                ..Self::default()
            },
            MoLora {
                rank: 1,
                top_k: Some(2),
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }
}

impl Method for MoLora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::dropout(self.dropout)?;
        check::size("experts", self.experts)?;
        check::size("experts * rank", self.experts.saturating_mul(self.rank))?;
        finite("alpha", self.alpha)?;
        finite("balance", self.balance)?;
        if let Some(kept) = self.top_k.filter(|k| !(1..=self.experts).contains(k)) {
            let expected = format!("from 1 to the {} `experts`, or left out", self.experts);
            return Err(CoreError::bad_value("top_k", kept, &expected));
        }
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (d_in, d_out, columns) = (site.d_in, site.d_out, self.experts * self.rank);
        Proj::new(MoLoraLinear {
            router: Param::from_tensor(init.normal([d_in, self.experts], ROUTER_STD)),
            a: Param::from_tensor(init.kaiming_uniform([d_in, columns], d_in)),
            b: Param::from_tensor(init.zeros([columns, d_out])),
            dropout: DropoutConfig::new(self.dropout).init(),
            scaling: self.alpha / self.rank as f64,
            top_k: self.top_k,
            balance: self.balance,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let own = |site: &Site| self.experts * (self.rank * (site.d_in + site.d_out) + site.d_in);
        selected(&self.targets, geometry).map(own).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }
}

/// A linear layer with experts beside it.
#[derive(Module, Debug)]
pub struct MoLoraLinear {
    base: Proj,
    /// `[d_in, experts]`
    router: Param<Tensor<2>>,
    /// Expert by expert, `[d_in, experts * rank]`
    a: Param<Tensor<2>>,
    /// Expert by expert, `[experts * rank, d_out]`
    b: Param<Tensor<2>>,
    dropout: Dropout,
    scaling: f64,
    top_k: Option<usize>,
    balance: f64,
}

impl MoLoraLinear {
    /// The experts' weights for every token, `[batch, sequence, experts]`.
    fn gates(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let tracked = x.device().is_autodiff();
        let gates = softmax(kernels::linear(x, self.router.val(), None), 2);
        let Some(kept) = self.top_k else {
            return gates;
        };
        let least = gates.clone().detach().topk(kept, 2).narrow(2, kept - 1, 1);
        let chosen = gates.clone().detach().greater_equal(least).float();
        if tracked && self.balance != 0.0 {
            pass.add_loss(self.imbalance(gates.clone(), chosen.clone(), pass));
        }
        gates * chosen
    }

    /// `balance * experts * sum over e of (share of the choices that fell on e) * (mean gate of e)`:
    /// `balance` where both are even, more the less they are. Padding does not count.
    fn imbalance(&self, gates: Tensor<3>, chosen: Tensor<3>, pass: &Pass<'_>) -> Tensor<1> {
        let [batch, seq, experts] = gates.dims();
        let mask = pass.text().mask.filter(|mask| mask.dims() == [batch, seq]);
        let counts = match mask {
            Some(mask) => mask.reshape([batch * seq, 1]),
            None => Tensor::ones([batch * seq, 1], &gates.device()),
        };
        let shares = |of: Tensor<3>| {
            let summed = (of.reshape([batch * seq, experts]) * counts.clone()).sum_dim(0);
            summed.clone() / summed.sum_dim(1)
        };
        let product = (shares(gates) * shares(chosen)).sum();
        product.mul_scalar(self.balance * experts as f64)
    }

    /// A number of every expert for each of its columns, `[.., experts * rank]`.
    fn by_column(&self, gates: Tensor<3>) -> Tensor<3> {
        let ([batch, seq, experts], [columns, _]) = (gates.dims(), self.b.val().dims());
        let repeated = gates.unsqueeze_dim::<4>(3).repeat_dim(3, columns / experts);
        repeated.reshape([batch, seq, columns])
    }
}

impl Projection for MoLoraLinear {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        let gates = self.by_column(self.gates(x.clone(), pass).mul_scalar(self.scaling));
        let h = kernels::linear(self.dropout.forward(x), self.a.val(), None);
        kernels::linear_onto(y, h * gates, self.b.val())
    }

    /// The weight that tokens of even gates see; there is no one weight for all.
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let [_, experts] = self.router.lazy_shape().dims();
        let update = self.a.val().matmul(self.b.val());
        self.base.weight(pass) + update.mul_scalar(self.scaling / experts as f64)
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias()
    }

    fn merge(&self, _pass: &Pass<'_>) -> Option<Dense> {
        None
    }

    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }

    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

#[cfg(test)]
mod tests;
