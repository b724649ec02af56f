//! DeLoRA: a low-rank update of unit directions, whose strength is one trained number.
//!
//! Paper: Bini et al. 2025, "DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation", ICLR,
//! arXiv 2503.18225.
//! Seam: linear layers. `y = x W + b + (n * x) A D B`, `n` the norm of each input's weights in the
//! base, and `D` diagonal with `lambda / (rank |a| |b|)` for each pair of a column of `A` and a row
//! of `B`: the update is never larger than `lambda`. Starts as HF PEFT does: `A` Kaiming-uniform,
//! `B` zero.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, number, peft_targets_of, place, selected};

/// Configuration of DeLoRA, `kind = "delora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delora {
    /// Rank of the update.
    pub rank: usize,
    /// Start of the update's strength.
    pub lambda: f64,
    /// Dropout on the input of the update while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Delora {
    fn default() -> Self {
        Self {
            rank: 8,
            lambda: 15.0,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

/// No squared norm of a direction counts as less than this, so that a zero one has a gradient.
const TINY: f64 = 1e-8;

impl MethodConfig for Delora {
    const INFO: MethodInfo = MethodInfo {
        kind: "delora",
        name: "DeLoRA",
        paper: "Bini et al. 2025, arXiv 2503.18225",
        seam: "linear layers",
        formula: "r (in + out) + 1 per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Delora {
                rank: 2,
                lambda: 2.0,
                ..Self::default()
            },
            Delora {
                rank: 3,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "DELORA" {
            return Ok(None);
        }
        fields.ignore(&["init_weights"]);
        Ok(Some(Delora {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.take("r")?.unwrap_or(8),
            lambda: fields.take("delora_lambda")?.unwrap_or(15.0),
            dropout: fields.take("module_dropout")?.unwrap_or(0.0),
        }))
    }
}

impl Method for Delora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::dropout(self.dropout)?;
        finite("lambda", self.lambda)?;
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (d_in, d_out, rank) = (site.d_in, site.d_out, self.rank);
        let weight = base.weight(&Pass::new()).detach();
        let norms = weight.square().sum_dim(1).sqrt().reshape([d_in]);
        Proj::new(DeloraLinear {
            a: Param::from_tensor(init.kaiming_uniform([d_in, rank], d_in)),
            b: Param::from_tensor(init.zeros([rank, d_out])),
            lambda: Param::from_tensor(init.full([1], self.lambda)),
            norms: Param::from_tensor(norms).set_require_grad(false),
            dropout: DropoutConfig::new(self.dropout).init(),
            base,
        })
    }

    /// The norms of their weights are found once.
    fn needs_bare_layers(&self) -> bool {
        true
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites
            .map(|site| self.rank * (site.d_in + site.d_out) + 1)
            .sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT's layer is one of PyTorch's `Linear` only.
        if geometry.keeps_weights_in_out() {
            return None;
        }
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "DELORA", "r": self.rank, "delora_lambda": number(self.lambda),
            "module_dropout": self.dropout, "bias": "none", "rank_pattern": {},
            "lambda_pattern": {}, "target_modules": peft_targets(&sites, geometry),
            "init_weights": true,
        });
        let rules = sites.iter().flat_map(|site| {
            [
                Rule::transposed(place(site, "a"), key(site, "delora_A")),
                Rule::transposed(place(site, "b"), key(site, "delora_B")),
                Rule::as_is(place(site, "lambda"), key(site, "delora_lambda")),
                // A file may leave them to the base they were taken from.
                Rule::as_is(place(site, "norms"), key(site, "delora_w_norm")).optional(),
            ]
        });
        Some(Foreign::new(fields, rules.collect()))
    }
}

/// A linear layer with an update of unit directions and one strength.
#[derive(Module, Debug)]
pub struct DeloraLinear {
    base: Proj,
    /// `[d_in, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b: Param<Tensor<2>>,
    /// `[1]`
    lambda: Param<Tensor<1>>,
    /// The norm of each input's weights in the base, `[d_in]`; never trained.
    norms: Param<Tensor<1>>,
    dropout: Dropout,
}

impl DeloraLinear {
    /// The factors of the update, `[d_in, rank]` and `[rank, d_out]`.
    fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        let (a, b) = (self.a.val(), self.b.val());
        let [rank, _] = b.dims();
        let length = |squares: Tensor<2>| squares.clamp_min(TINY).sqrt().reshape([rank]);
        let lengths = length(a.clone().square().sum_dim(0)) * length(b.clone().square().sum_dim(1));
        let strengths = self.lambda.val().div_scalar(rank as f64) / lengths;
        let a = a * self.norms.val().unsqueeze_dim(1);
        (a, b * strengths.unsqueeze_dim(1))
    }
}

impl Reweighted for DeloraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let (a, b) = self.factors();
        let y = self.base.forward(x.clone(), pass);
        let h = kernels::linear(self.dropout.forward(x), a, None);
        kernels::linear_onto(y, h, b)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (a, b) = self.factors();
        self.base.weight(pass) + a.matmul(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, site, stirred};
    use peft_core::Role;

    peft_core::contract_tests!(Delora);

    fn layer(rank: usize) -> (Proj, DeloraLinear) {
        let delora = Delora {
            rank,
            lambda: 3.0,
            ..Delora::default()
        };
        let proj = stirred(&delora, &site(Role::Query, 6, 5));
        let layer = proj.downcast_ref::<DeloraLinear>().unwrap().clone();
        (proj, layer)
    }

    #[test]
    fn every_pair_of_directions_has_an_equal_share_of_the_strength() {
        let (proj, layer) = layer(3);
        let pass = Pass::new();
        let base = layer.base.weight(&pass);
        let norms = base.clone().square().sum_dim(1).sqrt();
        let lambda: f32 = layer.lambda.val().into_scalar();
        let mut weight = base;
        for at in 0..3 {
            let (a, b) = (
                layer.a.val().narrow(1, at, 1),
                layer.b.val().narrow(0, at, 1),
            );
            let pair = a.clone().matmul(b.clone());
            let length: f32 = pair.clone().square().sum().sqrt().into_scalar();
            weight = weight + pair.mul_scalar(lambda / 3.0 / length) * norms.clone();
        }
        computes(&proj, &pass, weight, layer.base.bias().unwrap());
    }

    #[test]
    fn the_length_of_the_factors_changes_nothing() {
        let (proj, mut layer) = layer(2);
        let (weight, bias) = (proj.weight(&Pass::new()), proj.bias().unwrap());
        layer.a = Param::from_tensor(layer.a.val().mul_scalar(7.0).detach());
        layer.b = Param::from_tensor(layer.b.val().mul_scalar(0.5).detach());
        computes(&Proj::new(layer), &Pass::new(), weight, bias);
    }
}
