//! LoHa: the entry-by-entry product of two low-rank products, of rank up to `rank^2`.
//!
//! Paper: Hyeon-Woo et al. 2021, "FedPara: Low-Rank Hadamard Product for Communication-Efficient
//! Federated Learning", arXiv 2108.06098; as an adapter: LyCORIS (Yeh et al. 2023, 2309.14859).
//! Seam: linear layers. `y = x W + b + scaling * x ((A1 B1) * (A2 B2))`, `scaling = alpha / rank`.
//! Starts as HF PEFT does: Kaiming-uniform, `B2`'s input side zero.
//!
//! The product of the two is itself a product of `[d_in, rank^2]` and `[rank^2, d_out]` factors, the
//! rows of which are products of the rows of the given ones. The activations go through these
//! where that is less work than one dense matrix; where `rank^2` is too large for that the dense
//! update and its dense gradient are formed.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, number, peft_targets_of, place, selected, with_dense_update};

/// Configuration of LoHa, `kind = "loha"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loha {
    /// Rank of each of the two products.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Loha {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for Loha {
    const INFO: MethodInfo = MethodInfo {
        kind: "loha",
        name: "LoHa",
        paper: "Hyeon-Woo et al. 2021, arXiv 2108.06098",
        seam: "linear layers",
        formula: "2 r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        // A rank of 1 goes through the factors on the toy's layers, one of 3 through a dense update.
        vec![
            Loha {
                rank: 1,
                alpha: 4.0,
                ..Self::default()
            },
            Loha {
                rank: 3,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "LOHA" {
            return Ok(None);
        }
        fields.ignore(&["init_weights", "use_effective_conv2d"]);
        Ok(Some(Loha {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.require("r")?,
            alpha: fields.take("alpha")?.unwrap_or(8.0),
        }))
    }
}

impl Method for Loha {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        finite("alpha", self.alpha)?;
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(LohaLinear::new(self, site, base, init))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites
            .map(|site| 2 * self.rank * (site.d_in + site.d_out))
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
            "peft_type": "LOHA", "r": self.rank, "alpha": number(self.alpha),
            "target_modules": peft_targets(&sites, geometry), "init_weights": true,
            "rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": false,
            "rank_pattern": {}, "alpha_pattern": {},
        });
        // Theirs is [out, in]: the first factor of each product is on the output side.
        let pairs = [
            ("a1", "hada_w1_b"),
            ("b1", "hada_w1_a"),
            ("a2", "hada_w2_b"),
            ("b2", "hada_w2_a"),
        ];
        let rules = sites.iter().flat_map(|site| {
            pairs.map(|(ours, theirs)| Rule::transposed(place(site, ours), key(site, theirs)))
        });
        Some(Foreign::new(fields, rules.collect()))
    }
}

/// A linear layer with the entry-by-entry product of two low-rank updates.
#[derive(Module, Debug)]
pub struct LohaLinear {
    base: Proj,
    /// `[d_in, rank]`
    a1: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b1: Param<Tensor<2>>,
    /// `[d_in, rank]`
    a2: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b2: Param<Tensor<2>>,
    scaling: f64,
}

impl LohaLinear {
    fn new(loha: &Loha, site: &Site, base: Proj, init: &mut Init) -> Self {
        let (d_in, d_out, rank) = (site.d_in, site.d_out, loha.rank);
        Self {
            b1: Param::from_tensor(init.kaiming_uniform([rank, d_out], rank)),
            a1: Param::from_tensor(init.kaiming_uniform([d_in, rank], d_in)),
            b2: Param::from_tensor(init.kaiming_uniform([rank, d_out], rank)),
            a2: Param::from_tensor(init.zeros([d_in, rank])),
            scaling: loha.alpha / rank as f64,
            base,
        }
    }

    /// Whether the three products of training with each factor of rank `rank^2` are less work than the
    /// one with a dense matrix that is left where the update is added to the weight.
    fn is_narrow(&self) -> bool {
        let ((d_in, d_out), [_, rank]) = (self.base.dims(), self.a1.val().dims());
        3 * rank * rank * (d_in + d_out) < d_in * d_out
    }

    /// `[d_in, rank^2]` and `[rank^2, d_out]`, whose product is the update but for the scaling.
    fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        let (a1, a2) = (self.a1.val(), self.a2.val());
        let (b1, b2) = (self.b1.val(), self.b2.val());
        let ([d_in, rank], [_, d_out]) = (a1.dims(), b1.dims());
        let a = a1.unsqueeze_dim::<3>(2) * a2.unsqueeze_dim(1);
        let b = b1.unsqueeze_dim::<3>(1) * b2.unsqueeze_dim(0);
        let square = rank * rank;
        (a.reshape([d_in, square]), b.reshape([square, d_out]))
    }

    /// The update as a dense matrix.
    fn dense(&self) -> Tensor<2> {
        let first = self.a1.val().matmul(self.b1.val());
        let second = self.a2.val().matmul(self.b2.val());
        (first * second).mul_scalar(self.scaling)
    }
}

impl Reweighted for LohaLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        if !self.is_narrow() {
            return with_dense_update(&self.base, x, self.dense(), pass);
        }
        let y = self.base.forward(x.clone(), pass);
        let (a, b) = self.factors();
        let h = kernels::linear(x, a, None).mul_scalar(self.scaling);
        kernels::linear_onto(y, h, b)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) + self.dense()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, site, stirred};
    use peft_core::Role;

    peft_core::contract_tests!(Loha);

    fn check_rank(rank: usize, narrow: bool) {
        let loha = Loha {
            rank,
            alpha: 3.0,
            ..Loha::default()
        };
        let proj = stirred(&loha, &site(Role::Query, 60, 50));
        let layer: &LohaLinear = proj.downcast_ref().unwrap();
        assert_eq!(layer.is_narrow(), narrow);
        let product = |a: &Param<Tensor<2>>, b: &Param<Tensor<2>>| a.val().matmul(b.val());
        let update = product(&layer.a1, &layer.b1) * product(&layer.a2, &layer.b2);
        let pass = Pass::new();
        let weight = layer.base.weight(&pass) + update.mul_scalar(3.0 / rank as f64);
        computes(&proj, &pass, weight, layer.base.bias().unwrap());
    }

    #[test]
    fn factors_of_a_small_rank_give_the_product_of_the_products() {
        check_rank(2, true);
    }

    #[test]
    fn a_rank_too_large_for_the_factors_gives_the_same_through_a_dense_update() {
        check_rank(4, false);
    }
}
