//! HiRA: the frozen weight multiplied, entry by entry, by one plus a low-rank product.
//!
//! Paper: Huang et al. 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large
//! Language Models", ICLR 2025.
//! Seam: linear layers. `y = x W + b + dropout(x) (W * A B)`, entry by entry. Starts as HF PEFT
//! does: `A` Kaiming-uniform, `B` zero.
//!
//! The product of a dense and a low-rank matrix has no short form: a path through the activations
//! would apply `W` once for every rank. So the dense effective weight is formed in each pass, and
//! its dense gradient in each backward pass; over packed weights that means decoding them.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{key, peft_targets_of, place, selected};

/// Configuration of HiRA, `kind = "hira"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hira {
    /// Rank of the product.
    pub rank: usize,
    /// Dropout on the input of the update while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Hira {
    fn default() -> Self {
        Self {
            rank: 32,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for Hira {
    const INFO: MethodInfo = MethodInfo {
        kind: "hira",
        name: "HiRA",
        paper: "Huang et al. 2025, ICLR",
        seam: "linear layers",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        // The reach of the update is that of the base's weights: of small ones many are needed.
        let of = |rank| Hira {
            rank,
            targets: Targets::all_linear(),
            ..Self::default()
        };
        vec![of(8), of(12)]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "HIRA" {
            return Ok(None);
        }
        fields.ignore(&["init_weights"]);
        Ok(Some(Hira {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.require("r")?,
            dropout: fields.take("hira_dropout")?.unwrap_or(0.0),
        }))
    }
}

impl Method for Hira {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::dropout(self.dropout)?;
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(HiraLinear {
            a: Param::from_tensor(init.kaiming_uniform([site.d_in, self.rank], site.d_in)),
            b: Param::from_tensor(init.zeros([self.rank, site.d_out])),
            dropout: DropoutConfig::new(self.dropout).init(),
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites.map(|site| self.rank * (site.d_in + site.d_out)).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "HIRA", "r": self.rank, "hira_dropout": self.dropout,
            "target_modules": peft_targets(&sites, geometry), "rank_pattern": {},
            "fan_in_fan_out": geometry.keeps_weights_in_out(), "init_weights": true,
        });
        let pairs = [("a", "hira_A"), ("b", "hira_B")];
        let rules = sites.iter().flat_map(|site| {
            pairs.map(|(ours, theirs)| Rule::transposed(place(site, ours), key(site, theirs)))
        });
        Some(Foreign::new(fields, rules.collect()))
    }
}

/// A linear layer whose weight is multiplied entry by entry.
#[derive(Module, Debug)]
pub struct HiraLinear {
    base: Proj,
    /// `[d_in, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b: Param<Tensor<2>>,
    dropout: Dropout,
}

impl HiraLinear {
    fn product(&self) -> Tensor<2> {
        self.a.val().matmul(self.b.val())
    }
}

impl Reweighted for HiraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        if self.dropout.prob > 0.0 && x.device().is_autodiff() {
            let y = self.base.forward(x.clone(), pass);
            let update = self.base.weight(pass) * self.product();
            return kernels::linear_onto(y, self.dropout.forward(x), update);
        }
        // One product with the whole weight is cheaper than two.
        kernels::linear(x, self.weight(pass), self.base.bias())
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) * self.product().add_scalar(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, device, site, stirred};
    use crate::masks::computes_under_a_mask;
    use peft_core::Role;
    use peft_core::contract::random;

    peft_core::contract_tests!(Hira);

    fn example(dropout: f64) -> Proj {
        let hira = Hira {
            rank: 3,
            dropout,
            ..Hira::default()
        };
        stirred(&hira, &site(Role::Query, 6, 5))
    }

    #[test]
    fn the_update_is_the_weight_times_a_low_rank_product() {
        let proj = example(0.0);
        let layer: &HiraLinear = proj.downcast_ref().unwrap();
        let pass = Pass::new();
        let base = layer.base.weight(&pass);
        let weight = base.clone() + base * layer.a.val().matmul(layer.b.val());
        computes(&proj, &pass, weight, layer.base.bias().unwrap());
    }

    #[test]
    fn what_is_dropped_is_left_out_of_the_update_and_not_of_the_base() {
        let proj = example(0.4);
        let layer: &HiraLinear = proj.downcast_ref().unwrap();
        let (x, pass) = (random([2, 3, 6], &device()), Pass::new());
        let base = layer.base.weight(&pass);
        let update = base.clone() * layer.a.val().matmul(layer.b.val());
        let bias = layer.base.bias().unwrap();
        computes_under_a_mask(
            0.4,
            &x,
            || proj.forward(x.clone(), &pass),
            |left| {
                x.clone().matmul(base.clone().unsqueeze())
                    + left.matmul(update.clone().unsqueeze())
                    + bias.clone().unsqueeze()
            },
        );
    }
}
