//! DoRA: LoRA with the length of every column of the weight trained apart from its direction.
//!
//! Paper: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353.
//! Seam: linear layers, over whatever storage (over four-bit weights it is QDoRA).
//! `W' = m * V / |V|` with `V = W + scaling * A B`, and `|V|` the norm of each output's weights,
//! held constant in the backward pass (section 4.3 of the paper). `m` starts at `|W|`.
//!
//! No `V` is formed: `|V|^2 = |w|^2 + 2 s <w, AB> + s^2 |AB|^2` for each output, where `|w|^2` is
//! kept from the start, `<w, AB>` follows from `A' W` (the base applied to `rank` rows), and
//! `|AB|^2` from the small factors.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::geometry::is_part_of;
use peft_core::{
    BaseParam, CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass,
    Proj, Reweighted, Rule, Site, Start, Targets, kernels,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::family::{key, place};
use crate::lora::{Lora, peft};

/// Configuration of DoRA, `kind = "dora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dora {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of the update while training. With it every training step applies the
    /// base twice: to the whole input and to what is left of it.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
    /// Scaling `alpha / sqrt(rank)`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// Ranks of single layers, by the end of their path; the longest that matches counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Values of `alpha` of single layers, likewise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules of the base that are trained whole, by a part of their path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
}

impl Default for Dora {
    fn default() -> Self {
        let lora = Lora::default();
        Self {
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: lora.dropout,
            targets: lora.targets,
            rslora: lora.rslora,
            rank_pattern: lora.rank_pattern,
            alpha_pattern: lora.alpha_pattern,
            modules_to_save: lora.modules_to_save,
        }
    }
}

impl Dora {
    /// LoRA with the same low-rank update.
    fn lora(&self) -> Lora {
        Lora {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.clone(),
            rslora: self.rslora,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            modules_to_save: self.modules_to_save.clone(),
            ..Lora::default()
        }
    }
}

impl MethodConfig for Dora {
    const INFO: MethodInfo = MethodInfo {
        kind: "dora",
        name: "DoRA",
        paper: "Liu et al. 2024, arXiv 2402.09353",
        seam: "linear layers",
        formula: "r (in + out) + out per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Dora {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Dora {
                rank: 3,
                rslora: true,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "LORA" || fields.peek("use_dora") != true {
            return Ok(None);
        }
        fields.ignore(&["use_dora"]);
        fields.allow("bias", &["none".into()])?;
        fields.allow("lora_bias", &[false.into()])?;
        let lora = peft::read_fields(fields, geometry)?;
        Ok(Some(Dora {
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: lora.dropout,
            targets: lora.targets,
            rslora: lora.rslora,
            rank_pattern: lora.rank_pattern,
            alpha_pattern: lora.alpha_pattern,
            modules_to_save: lora.modules_to_save,
        }))
    }
}

impl Method for Dora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        // Unlike LoRA's, the targets are linear layers only.
        let targets = self.targets.select(&geometry.sites)?;
        self.lora().check(geometry)?;
        // The norms of the base are found once: its weights must stay as they are.
        let saved_whole = |name: &&String| {
            let mut weights = targets.iter().map(|site| format!("{}.weight", site.path));
            weights.any(|weight| is_part_of(name, &weight))
        };
        match self.modules_to_save.iter().find(saved_whole) {
            None => Ok(()),
            Some(name) => {
                let expected = "a module that holds no target";
                Err(CoreError::bad_value("modules_to_save", name, expected))
            }
        }
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(DoraLinear::new(&self.lora(), site, base, init))
    }

    fn trains(&self, param: &BaseParam) -> bool {
        self.lora().trains(param)
    }

    fn unties_head(&self, geometry: &Geometry) -> bool {
        self.lora().unties_head(geometry)
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let lora = self.lora();
        let magnitudes: usize = lora.selected(geometry).map(|site| site.d_out).sum();
        lora.parameters(geometry) + magnitudes
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let lora = self.lora();
        let mut foreign = peft::write(&lora, geometry);
        foreign.fields.insert("use_dora".into(), json!(true));
        let magnitudes = lora.selected(geometry).map(|site| {
            let theirs = key(site, "lora_magnitude_vector");
            Rule::as_is(place(site, "magnitude"), theirs)
        });
        foreign.rules.extend(magnitudes);
        Some(foreign)
    }
}

/// A linear layer with a low-rank update and a trained magnitude of every output.
#[derive(Module, Debug)]
pub struct DoraLinear {
    base: Proj,
    /// `[d_in, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b: Param<Tensor<2>>,
    /// `[d_out]`
    magnitude: Param<Tensor<1>>,
    /// The base's squared norms, `[d_out]`; never trained.
    squares: Param<Tensor<1>>,
    dropout: Dropout,
    scaling: f64,
}

/// What the norm of an all-zero column counts as, so that its magnitude of 0 stays 0.
const TINY: f64 = 1e-24;

impl DoraLinear {
    fn new(lora: &Lora, site: &Site, base: Proj, init: &mut Init) -> Self {
        let rank = lora.rank_at(&site.path);
        let weight = base.weight(&Pass::new()).detach();
        let squares = weight.square().sum_dim(0).reshape([site.d_out]);
        Self {
            a: Param::from_tensor(init.kaiming_uniform([site.d_in, rank], site.d_in)),
            b: Param::from_tensor(init.zeros([rank, site.d_out])),
            magnitude: Param::from_tensor(squares.clone().sqrt().detach()),
            squares: Param::from_tensor(squares).set_require_grad(false),
            dropout: DropoutConfig::new(lora.dropout).init(),
            scaling: lora.scaling_at(&site.path),
            base,
        }
    }

    /// The norm of each output's weights, `[d_out]`; no gradient passes through it.
    fn norms(&self, pass: &Pass<'_>) -> Tensor<1> {
        let (a, b) = (self.a.val().detach(), self.b.val().detach());
        let rows = self.base.forward(a.clone().transpose().unsqueeze(), pass);
        let rows = match self.base.bias() {
            Some(bias) => rows - bias.unsqueeze(),
            None => rows,
        };
        let across = rows.detach().squeeze_dim::<2>(0) * b.clone();
        let within = a.clone().transpose().matmul(a).matmul(b.clone()) * b;
        let sum = |products: Tensor<2>| products.sum_dim(0).squeeze_dim::<1>(0);
        let squares = self.squares.val()
            + sum(across).mul_scalar(2.0 * self.scaling)
            + sum(within).mul_scalar(self.scaling * self.scaling);
        squares.clamp_min(TINY).sqrt().detach()
    }

    /// By how much each output is stretched, `[d_out]`.
    fn stretch(&self, pass: &Pass<'_>) -> Tensor<1> {
        self.magnitude.val() / self.norms(pass)
    }

    /// `y + scaling * x A B`
    fn with_update(&self, y: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        let h = kernels::linear(x, self.a.val(), None);
        kernels::linear_onto(y, h.mul_scalar(self.scaling), self.b.val())
    }

    fn drops(&self, x: &Tensor<3>) -> bool {
        self.dropout.prob > 0.0 && x.device().is_autodiff()
    }
}

impl Reweighted for DoraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let stretch = self.stretch(pass);
        let bias = self.base.bias();
        if self.drops(&x) {
            // y + (g - 1) x' W + g s x' A B for what dropout leaves of x.
            let y = self.base.forward(x.clone(), pass);
            let left = self.dropout.forward(x);
            let direct = self.base.forward(left.clone(), pass);
            let added = self.with_update(direct.clone(), left) * stretch.clone().unsqueeze();
            let y = y + added - direct;
            return match bias {
                Some(bias) => y + (bias.clone() - bias * stretch).unsqueeze(),
                None => y,
            };
        }
        let y = self.with_update(self.base.forward(x.clone(), pass), x);
        let y = y * stretch.clone().unsqueeze();
        // The base's bias is inside y and must not be stretched.
        match bias {
            Some(bias) => y + (bias.clone() - bias * stretch).unsqueeze(),
            None => y,
        }
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let update = self.a.val().matmul(self.b.val()).mul_scalar(self.scaling);
        (self.base.weight(pass) + update) * self.stretch(pass).unsqueeze()
    }
}

#[cfg(test)]
mod tests;
