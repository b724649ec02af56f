//! HRA: the input turned by a chain of trained reflections.
//!
//! Paper: Yuan et al. 2024, "Bridging The Gap between Low-rank and Orthogonal Adaptation via
//! Householder Reflection Adaptation", NeurIPS, arXiv 2405.17484.
//! Seam: linear layers. `y = x H W + b`, `H` the product of `rank` reflections `I - 2 u u'` in the
//! directions of the trained vectors, the last vector's first. Starts as HF PEFT does: pairs of equal
//! vectors, whose reflections cancel, or unpaired ones where the rank is odd; Kaiming-uniform over
//! the matrix as it lies there, so that the bound follows from the number of vectors drawn. Only
//! directions count, but the length of a vector says how far a step of the optimizer turns it.
//!
//! The reflections are applied together: a product of them is `I - U S U'` with the unit vectors
//! `U` and a triangular `S` of `rank` rows (Schreiber and Van Loan 1989), so that the input is read
//! once whatever the rank. `S` is the inverse of a triangle of `rank` rows, found on the host in each
//! pass of training, so that a GPU waits for it.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::cayley::inverse;
use crate::family::{key, peft_targets_of, place, selected};

/// Configuration of HRA, `kind = "hra"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hra {
    /// Number of reflections. With an odd one they have no partners, and the start is not the base.
    pub rank: usize,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Hra {
    fn default() -> Self {
        Self {
            rank: 8,
            targets: Targets::Default,
        }
    }
}

impl Hra {
    /// The vectors, `[d_in, rank]`. PyTorch takes the number of columns it draws for their fan.
    fn start(&self, d_in: usize, init: &mut Init) -> Tensor<2> {
        let rank = self.rank;
        if !rank.is_multiple_of(2) {
            return init.kaiming_uniform([d_in, rank], rank);
        }
        let halves: Tensor<2> = init.kaiming_uniform([d_in, rank / 2], rank / 2);
        let doubled = halves.unsqueeze_dim::<3>(2).repeat_dim(2, 2);
        doubled.reshape([d_in, rank])
    }
}

impl MethodConfig for Hra {
    const INFO: MethodInfo = MethodInfo {
        kind: "hra",
        name: "HRA",
        paper: "Yuan et al. 2024, arXiv 2405.17484",
        seam: "linear layers",
        formula: "r in per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        let of = |rank| Hra {
            rank,
            targets: Targets::all_linear(),
        };
        vec![of(2), of(6)]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "HRA" {
            return Ok(None);
        }
        fields.ignore(&["init_weights"]);
        Ok(Some(Hra {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.take("r")?.unwrap_or(8),
        }))
    }
}

impl Method for Hra {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(HraLinear {
            u: Param::from_tensor(self.start(site.d_in, init)),
            steady: None,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites.map(|site| self.rank * site.d_in).sum()
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
            "peft_type": "HRA", "r": self.rank, "apply_GS": false, "bias": "none",
            "target_modules": peft_targets(&sites, geometry), "init_weights": true,
        });
        let rule = |site: &&Site| Rule::as_is(place(site, "u"), key(site, "hra_u"));
        Some(Foreign::new(fields, sites.iter().map(rule).collect()))
    }
}

/// A linear layer whose input is reflected several times.
#[derive(Module, Debug)]
pub struct HraLinear {
    base: Proj,
    /// A vector a column, of any length, `[d_in, rank]`
    u: Param<Tensor<2>>,
    /// The factors of the product, where nothing is trained any more.
    steady: Option<(Tensor<2>, Tensor<2>)>,
}

impl HraLinear {
    /// The unit vectors `U`, and `U S`, both `[d_in, rank]`.
    fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        if let Some(factors) = &self.steady {
            return factors.clone();
        }
        let u = self.u.val();
        let lengths = u.clone().square().sum_dim(0).sqrt();
        let u = u / lengths;
        // S is the inverse of the lower half of U' U with halves of it on the diagonal.
        let gram = u.clone().transpose().matmul(u.clone());
        let [rank, _] = gram.dims();
        let doubled = gram.tril(-1).mul_scalar(2.0) + Tensor::eye(rank, &u.device());
        let s = inverse(doubled.unsqueeze()).squeeze_dim::<2>(0);
        (u.clone(), u.matmul(s.mul_scalar(2.0)))
    }
}

impl Reweighted for HraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let (u, us) = self.factors();
        let h = kernels::linear(x.clone(), us, None).neg();
        let turned = kernels::linear_onto(x, h, u.transpose());
        self.base.forward(turned, pass)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (u, us) = self.factors();
        let weight = self.base.weight(pass);
        weight.clone() - us.matmul(u.transpose().matmul(weight))
    }

    fn steady(&self, _pass: &Pass<'_>) -> Option<Proj> {
        let (u, us) = self.factors();
        Some(Proj::new(Self {
            steady: Some((u.detach(), us.detach())),
            ..self.clone()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, site, stirred};
    use peft_core::Role;

    peft_core::contract_tests!(Hra);

    #[test]
    fn the_input_is_reflected_in_one_vector_after_another() {
        for rank in [1, 2, 5] {
            let hra = Hra {
                rank,
                ..Hra::default()
            };
            let proj = stirred(&hra, &site(Role::Query, 7, 5));
            let layer: &HraLinear = proj.downcast_ref().unwrap();
            let pass = Pass::new();
            let mut weight = layer.base.weight(&pass);
            for at in 0..rank {
                let u = layer.u.val().narrow(1, at, 1);
                let length = u.clone().square().sum().unsqueeze();
                let share = u.clone().transpose().matmul(weight.clone()) / length;
                weight = weight - u.matmul(share).mul_scalar(2.0);
            }
            let bias = layer.base.bias().unwrap();
            computes(&proj, &pass, weight.clone(), bias.clone());
            let steady = proj.valid().steady(&pass).unwrap();
            computes(
                &steady,
                &pass,
                weight.without_autodiff(),
                bias.without_autodiff(),
            );
        }
    }

    #[test]
    fn equal_vectors_stay_exact_where_a_series_would_overflow() {
        let hra = Hra {
            rank: 40,
            ..Hra::default()
        };
        let proj = stirred(&hra, &site(Role::Query, 6, 4));
        let mut layer: HraLinear = proj.downcast_ref::<HraLinear>().unwrap().clone();
        let first = layer.u.val().narrow(1, 0, 1).repeat_dim(1, 40);
        layer.u = Param::from_tensor(first.detach());
        let pass = Pass::new();
        let (weight, bias) = (layer.base.weight(&pass), layer.base.bias().unwrap());
        computes(&Proj::new(layer), &pass, weight, bias);
    }
}
