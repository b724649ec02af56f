//! VeRA: one pair of frozen random matrices for the whole model, two trained vectors per layer.
//!
//! Paper: Kopiczko et al. 2023, "VeRA: Vector-based Random Matrix Adaptation", arXiv 2310.11454.
//! Seam: linear layers, with state shared across them.
//! `y = x W + b + lambda_b * ((lambda_d * (x A)) B)` with shared `A` and `B`, sliced to the layer's
//! width as in HF PEFT; `lambda_d` starts at `d_initial`, `lambda_b` at zero. `A` and `B` are drawn as
//! there: uniform of variance `2 / fan`, the fan that of what each is multiplied with. They are kept
//! with the adapter, as PEFT keeps them, which is then no matter of how they were drawn.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    Buffer, CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass,
    Proj, Reweighted, Rule, SharedSlot, Site, Start, Targets, check, exchange::peft_targets,
    kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{peft_targets_of, selected};

/// Configuration of VeRA, `kind = "vera"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vera {
    /// Rank of the shared matrices.
    pub rank: usize,
    /// Start of the vector `lambda_d`.
    pub d_initial: f64,
    /// Dropout on the input while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Vera {
    fn default() -> Self {
        Self {
            rank: 256,
            d_initial: 0.1,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for Vera {
    const INFO: MethodInfo = MethodInfo {
        kind: "vera",
        name: "VeRA",
        paper: "Kopiczko et al. 2023, arXiv 2310.11454",
        seam: "linear layers, shared state",
        formula: "r + out per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Vera {
                rank: 6,
                ..Self::default()
            },
            Vera {
                rank: 16,
                d_initial: 1.0,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "VERA" {
            return Ok(None);
        }
        // Without the matrices in the file they would have to come from PyTorch's generator.
        fields.allow("save_projection", &[true.into()])?;
        fields.allow("init_weights", &[true.into(), false.into()])?;
        fields.ignore(&["projection_prng_key"]);
        Ok(Some(Vera {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.require("r")?,
            d_initial: fields.take("d_initial")?.unwrap_or(0.1),
            dropout: fields.take("vera_dropout")?.unwrap_or(0.0),
        }))
    }
}

impl Method for Vera {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::dropout(self.dropout)?;
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let targets = || selected(&self.targets, geometry);
        let d_in = targets().map(|site| site.d_in).max()?;
        let d_out = targets().map(|site| site.d_out).max()?;
        let mut drawn = |shape, fan: usize| {
            let bound = (6.0 / fan as f64).sqrt();
            Buffer::new(init.uniform(shape, bound))
        };
        Some(SharedSlot::new(VeraShared {
            a: drawn([d_in, self.rank], d_in),
            b: drawn([self.rank, d_out], self.rank),
        }))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(VeraLinear {
            lambda_d: Param::from_tensor(init.full([self.rank], self.d_initial)),
            lambda_b: Param::from_tensor(init.zeros([site.d_out])),
            dropout: DropoutConfig::new(self.dropout).init(),
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites.map(|site| self.rank + site.d_out).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "VERA", "r": self.rank, "d_initial": self.d_initial,
            "vera_dropout": self.dropout, "save_projection": true, "projection_prng_key": 0,
            "target_modules": peft_targets(&sites, geometry), "bias": "none",
            "fan_in_fan_out": geometry.keeps_weights_in_out(), "init_weights": true,
        });
        let mut rules = vec![
            Rule::transposed("shared/a.value", "base_model.vera_A"),
            Rule::transposed("shared/b.value", "base_model.vera_B"),
        ];
        for site in sites {
            for vector in ["lambda_d", "lambda_b"] {
                let key = format!("base_model.model.{}.vera_{vector}", site.path);
                rules.push(Rule::as_is(format!("{}/{vector}", site.path), key));
            }
        }
        Some(Foreign::new(fields, rules))
    }
}

/// The matrices every layer shares, wide enough for the widest one.
#[derive(Module, Debug)]
pub struct VeraShared {
    /// `[max d_in, rank]`
    a: Buffer,
    /// `[rank, max d_out]`
    b: Buffer,
}

/// A linear layer with VeRA's two vectors.
#[derive(Module, Debug)]
pub struct VeraLinear {
    base: Proj,
    /// `[rank]`
    lambda_d: Param<Tensor<1>>,
    /// `[d_out]`
    lambda_b: Param<Tensor<1>>,
    dropout: Dropout,
}

impl VeraLinear {
    /// The shared matrices, cut to this layer's width.
    fn matrices(&self, pass: &Pass<'_>) -> (Tensor<2>, Tensor<2>) {
        let shared: &VeraShared = pass.shared();
        let (d_in, d_out) = self.base.dims();
        (
            shared.a.val().narrow(0, 0, d_in),
            shared.b.val().narrow(1, 0, d_out),
        )
    }
}

impl Reweighted for VeraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let (a, b) = self.matrices(pass);
        let h = kernels::linear(self.dropout.forward(x.clone()), a, None);
        let h = h * self.lambda_d.val().unsqueeze();
        let update = kernels::linear(h, b, None) * self.lambda_b.val().unsqueeze();
        self.base.forward(x, pass) + update
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (a, b) = self.matrices(pass);
        let scaled = a * self.lambda_d.val().unsqueeze();
        self.base.weight(pass) + scaled.matmul(b) * self.lambda_b.val().unsqueeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Vera);
}
