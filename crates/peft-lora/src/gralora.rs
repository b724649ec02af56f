//! GraLoRA: a weight cut into blocks, each with a low-rank update of its own.
//!
//! Paper: Jung et al. 2025, "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient
//! Fine-Tuning", NeurIPS, arXiv 2505.20355.
//! Seam: linear layers. With `blocks` cuts on each side and `scaling = alpha / rank`, the block from
//! input part `i` to output part `j` gets `scaling * A[i, j] B[j, i]` of rank `rank / blocks`: as
//! many parameters as LoRA's, for an update of up to `blocks` times the rank. Starts as HF PEFT
//! does: `A` Kaiming-uniform, `B` zero.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, number, peft_targets_of, place, selected};

/// Configuration of GraLoRA, `kind = "gralora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gralora {
    /// Rank of all updates of one part of the input together; a multiple of `blocks`.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Parts that inputs and outputs are cut into.
    pub blocks: usize,
    /// Dropout on the input of the update while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Gralora {
    fn default() -> Self {
        Self {
            rank: 32,
            alpha: 64.0,
            blocks: 2,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for Gralora {
    const INFO: MethodInfo = MethodInfo {
        kind: "gralora",
        name: "GraLoRA",
        paper: "Jung et al. 2025, arXiv 2505.20355",
        seam: "linear layers",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Gralora {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Gralora {
                rank: 8,
                alpha: 8.0,
                blocks: 4,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "GRALORA" {
            return Ok(None);
        }
        fields.ignore(&["init_weights"]);
        fields.allow("hybrid_r", &[0.into()])?;
        Ok(Some(Gralora {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.take("r")?.unwrap_or(32),
            alpha: fields.take("alpha")?.unwrap_or(64.0),
            blocks: fields.take("gralora_k")?.unwrap_or(2),
            dropout: fields.take("gralora_dropout")?.unwrap_or(0.0),
        }))
    }
}

impl Method for Gralora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::size("blocks", self.blocks)?;
        check::dropout(self.dropout)?;
        finite("alpha", self.alpha)?;
        let blocks = self.blocks;
        if !self.rank.is_multiple_of(blocks) {
            let expected = format!("a multiple of `blocks`, {blocks}");
            return Err(CoreError::bad_value("rank", self.rank, &expected));
        }
        for site in self.targets.select(&geometry.sites)? {
            for width in [site.d_in, site.d_out] {
                if !width.is_multiple_of(blocks) {
                    let expected = format!("a divisor of {width}, a width of `{}`", site.path);
                    return Err(CoreError::bad_value("blocks", blocks, &expected));
                }
            }
        }
        Ok(())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (blocks, rank) = (self.blocks, self.rank);
        let (d_in, d_out) = (site.d_in / blocks, site.d_out / blocks);
        Proj::new(GraloraLinear {
            a: Param::from_tensor(init.kaiming_uniform([blocks, d_in, rank], d_in)),
            b: Param::from_tensor(init.zeros([blocks, rank, d_out])),
            dropout: DropoutConfig::new(self.dropout).init(),
            scaling: self.alpha / rank as f64,
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
            "peft_type": "GRALORA", "r": self.rank, "alpha": number(self.alpha), "hybrid_r": 0,
            "gralora_k": self.blocks, "gralora_dropout": self.dropout, "bias": "none",
            "target_modules": peft_targets(&sites, geometry),
            "fan_in_fan_out": geometry.keeps_weights_in_out(), "init_weights": true,
        });
        let pairs = [("a", "gralora_A"), ("b", "gralora_B")];
        let rules = sites.iter().flat_map(|site| {
            pairs.map(|(ours, theirs)| Rule::as_is(place(site, ours), key(site, theirs)))
        });
        Some(Foreign::new(fields, rules.collect()))
    }
}

/// A linear layer with a low-rank update of every block.
#[derive(Module, Debug)]
pub struct GraloraLinear {
    base: Proj,
    /// `[input parts, d_in / blocks, rank]`
    a: Param<Tensor<3>>,
    /// `[output parts, rank, d_out / blocks]`
    b: Param<Tensor<3>>,
    dropout: Dropout,
    scaling: f64,
}

impl GraloraLinear {
    /// What the update makes of an input.
    fn update(&self, x: Tensor<3>) -> Tensor<3> {
        let ([batch, seq, d_in], [blocks, _, rank]) = (x.dims(), self.a.val().dims());
        let (rows, share) = (batch * seq, rank / blocks);
        let parts = x.reshape([rows, blocks, d_in / blocks]).swap_dims(0, 1);
        // Every input part gives a share to every output part.
        let shares = parts.matmul(self.a.val());
        let shares = shares.reshape([blocks, rows, blocks, share]);
        let gathered = shares.permute([2, 1, 0, 3]).reshape([blocks, rows, rank]);
        let parts = gathered.mul_scalar(self.scaling).matmul(self.b.val());
        let [_, _, width] = parts.dims();
        parts.swap_dims(0, 1).reshape([batch, seq, blocks * width])
    }
}

impl Reweighted for GraloraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        y + self.update(self.dropout.forward(x))
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let weight = self.base.weight(pass);
        let [d_in, _] = weight.dims();
        let identity = Tensor::<2>::eye(d_in, &weight.device()).unsqueeze();
        weight + self.update(identity).squeeze_dim::<2>(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, site, stirred};
    use peft_core::Role;

    peft_core::contract_tests!(Gralora);

    #[test]
    fn every_block_of_the_weight_has_an_update_of_its_own() {
        let gralora = Gralora {
            rank: 4,
            alpha: 6.0,
            ..Gralora::default()
        };
        let proj = stirred(&gralora, &site(Role::Query, 6, 10));
        let layer: &GraloraLinear = proj.downcast_ref().unwrap();
        let pass = Pass::new();
        let block = |i: usize, j: usize| {
            let a = layer.a.val().narrow(0, i, 1).narrow(2, 2 * j, 2);
            let b = layer.b.val().narrow(0, j, 1).narrow(1, 2 * i, 2);
            a.matmul(b).squeeze_dim::<2>(0).mul_scalar(6.0 / 4.0)
        };
        let row = |i| Tensor::cat(vec![block(i, 0), block(i, 1)], 1);
        let update = Tensor::cat(vec![row(0), row(1)], 0);
        let weight = layer.base.weight(&pass) + update;
        computes(&proj, &pass, weight, layer.base.bias().unwrap());
    }
}
