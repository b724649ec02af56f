//! RandLoRA: a sum of frozen random low-rank products, enough of them for full rank, each with
//! trained diagonals.
//!
//! Paper: Albert et al. 2025, "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
//! ICLR, arXiv 2502.00987.
//! Seam: linear layers, with state shared across them. `n = ceil(min(in, out) / rank)` products,
//! `y = x W + b + scaling * sum over j of x B_j L_j A G_j` (turned round where the input is the
//! narrower side), `scaling = alpha / rank`: one random `A` and `n` random `B_j` for the whole
//! model, cut to the layer's widths, and diagonals `L_j` of `rank` and `G_j` of `min(in, out)`
//! numbers of the layer's own. Starts as HF PEFT does: `L` zero, `G` even.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, SharedSlot, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, number, peft_targets_of, place, selected};

/// Configuration of RandLoRA, `kind = "randlora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandLora {
    /// Rank of every product; the smaller, the more products and parameters there are.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of the update while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for RandLora {
    fn default() -> Self {
        Self {
            rank: 32,
            alpha: 640.0,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

impl RandLora {
    /// How many products a matrix of these widths has.
    fn products(&self, d_in: usize, d_out: usize) -> usize {
        d_in.min(d_out).div_ceil(self.rank)
    }

    /// The largest input and the largest output among the targets.
    fn widest(&self, geometry: &Geometry) -> Option<(usize, usize)> {
        let widths = selected(&self.targets, geometry).map(|site| (site.d_in, site.d_out));
        widths.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
    }
}

impl MethodConfig for RandLora {
    const INFO: MethodInfo = MethodInfo {
        kind: "randlora",
        name: "RandLoRA",
        paper: "Albert et al. 2025, arXiv 2502.00987",
        seam: "linear layers, shared state",
        formula: "n (r + min(in, out)) per target, n = min(in, out) / r",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            RandLora {
                rank: 3,
                alpha: 30.0,
                ..Self::default()
            },
            RandLora {
                rank: 9,
                alpha: 20.0,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "RANDLORA" {
            return Ok(None);
        }
        // Without the matrices in the file they would have to come from PyTorch's generator.
        fields.allow("save_projection", &[true.into()])?;
        // How they were drawn is of no more account.
        fields.ignore(&[
            "init_weights",
            "projection_prng_key",
            "sparse",
            "very_sparse",
        ]);
        Ok(Some(RandLora {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.take("r")?.unwrap_or(32),
            alpha: fields.take("randlora_alpha")?.unwrap_or(640.0),
            dropout: fields.take("randlora_dropout")?.unwrap_or(0.0),
        }))
    }
}

impl Method for RandLora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::dropout(self.dropout)?;
        finite("alpha", self.alpha)?;
        self.targets.select(&geometry.sites)?;
        // One product of full rank is enough; the shared matrices grow with the rank.
        let most = self
            .widest(geometry)
            .map_or(0, |(d_in, d_out)| d_in.max(d_out));
        if self.rank > most {
            let expected = format!("at most {most}, the largest width of the targets");
            return Err(CoreError::bad_value("rank", self.rank, &expected));
        }
        Ok(())
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let (d_in, d_out) = self.widest(geometry)?;
        let (narrow, wide) = (d_in.min(d_out), d_in.max(d_out));
        let products = self.products(d_in, d_out);
        // Uniform values of variance 1.
        let bound = 3f64.sqrt();
        let mut frozen = |shape: [usize; 3]| {
            Param::from_tensor(init.uniform(shape, bound)).set_require_grad(false)
        };
        Some(SharedSlot::new(RandLoraShared {
            a: frozen([self.rank, 1, narrow]),
            b: frozen([wide, products, self.rank]),
        }))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (products, narrow) = (
            self.products(site.d_in, site.d_out),
            site.d_in.min(site.d_out),
        );
        let even = 1.0 / products.max(narrow) as f64;
        Proj::new(RandLoraLinear {
            lambda: Param::from_tensor(init.zeros([self.rank, products])),
            gamma: Param::from_tensor(init.full([products, narrow], even)),
            dropout: DropoutConfig::new(self.dropout).init(),
            scaling: self.alpha / self.rank as f64,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let own = |site: &Site| {
            let (d_in, d_out) = (site.d_in, site.d_out);
            self.products(d_in, d_out) * (self.rank + d_in.min(d_out))
        };
        selected(&self.targets, geometry).map(own).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "RANDLORA", "r": self.rank, "randlora_alpha": number(self.alpha),
            "randlora_dropout": self.dropout, "save_projection": true, "projection_prng_key": 0,
            "sparse": false, "very_sparse": false, "bias": "none",
            "target_modules": peft_targets(&sites, geometry),
            "fan_in_fan_out": geometry.keeps_weights_in_out(), "init_weights": true,
        });
        let shared = [("a", "A"), ("b", "B")].map(|(ours, theirs)| {
            Rule::as_is(
                format!("shared/{ours}"),
                format!("base_model.randlora_{theirs}"),
            )
        });
        let diagonals = sites.iter().flat_map(|site| {
            ["lambda", "gamma"].map(|diagonal| {
                Rule::as_is(
                    place(site, diagonal),
                    key(site, &format!("randlora_{diagonal}")),
                )
            })
        });
        Some(Foreign::new(
            fields,
            shared.into_iter().chain(diagonals).collect(),
        ))
    }
}

/// The random matrices of all layers, as wide as the widest needs them.
#[derive(Module, Debug)]
pub struct RandLoraShared {
    /// `[rank, 1, narrower side]`
    a: Param<Tensor<3>>,
    /// `[wider side, products, rank]`
    b: Param<Tensor<3>>,
}

/// A linear layer with a sum of scaled random products.
#[derive(Module, Debug)]
pub struct RandLoraLinear {
    base: Proj,
    /// `[rank, products]`
    lambda: Param<Tensor<2>>,
    /// `[products, min(d_in, d_out)]`
    gamma: Param<Tensor<2>>,
    dropout: Dropout,
    scaling: f64,
}

impl RandLoraLinear {
    /// The factors of the update, `[d_in, rank * products]` and `[rank * products, d_out]`.
    ///
    /// HF PEFT lays the columns of the one out by product and the rows of the other by rank, and
    /// multiplies them so; what meets what is random anyway, but must be the same here.
    fn factors(&self, pass: &Pass<'_>) -> (Tensor<2>, Tensor<2>) {
        let shared: &RandLoraShared = pass.shared();
        let ((d_in, d_out), [rank, products]) = (self.base.dims(), self.lambda.val().dims());
        let (narrow, wide) = (d_in.min(d_out), d_in.max(d_out));
        let a = shared.a.val().narrow(2, 0, narrow);
        let b = shared.b.val().narrow(0, 0, wide).narrow(1, 0, products);
        let lambda = self.lambda.val().mul_scalar(self.scaling);
        let scaled = a * lambda.unsqueeze_dim(2) * self.gamma.val().unsqueeze();
        let scaled = scaled.reshape([rank * products, narrow]);
        let random = b.reshape([wide, products * rank]);
        match d_in <= d_out {
            true => (scaled.transpose(), random.transpose()),
            false => (random, scaled),
        }
    }
}

impl Reweighted for RandLoraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let (first, second) = self.factors(pass);
        let y = self.base.forward(x.clone(), pass);
        let h = kernels::linear(self.dropout.forward(x), first, None);
        kernels::linear_onto(y, h, second)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (first, second) = self.factors(pass);
        self.base.weight(pass) + first.matmul(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(RandLora);

    #[test]
    fn a_rank_above_every_width_is_refused() {
        let mut init = Init::new(0, &burn::tensor::Device::flex());
        let toy = <peft_core::toy::Toy as peft_core::contract::ContractHost>::build(&mut init);
        let absurd = RandLora {
            rank: 1 << 20,
            ..RandLora::default()
        };
        let error = absurd.check(&peft_core::Host::geometry(&toy)).unwrap_err();
        assert!(error.to_string().contains("`rank` is 1048576"), "{error}");
    }

    #[test]
    fn there_are_enough_products_for_full_rank() {
        let rank = |rank| RandLora {
            rank,
            ..RandLora::default()
        };
        assert_eq!(rank(32).products(768, 768), 24);
        assert_eq!(rank(5).products(24, 40), 5);
        assert_eq!(rank(100).products(24, 40), 1);
    }
}
