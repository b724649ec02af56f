//! DoRA: LoRA with the length of every column of the weight trained apart from its direction.
//!
//! Paper: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353.
//! Seam: linear layers, over whatever storage (over four-bit weights it is QDoRA).
//! `W' = m * V / |V|` with `V = W + scaling * A B`, and `|V|` the norm of each output's weights,
//! held constant in the backward pass (section 4.3 of the paper). `m` starts at `|W|`.
//!
//! No `V` is formed: `|V|^2 = |w|^2 + 2 s <w, AB> + s^2 |AB|^2` for each output, where `|w|^2` is
//! kept from the start, `<w, AB>` follows from `A' W` (the base applied to `rank` rows), and
//! `|AB|^2` from the small factors. The rows go through a packed base together with the input, so that
//! it is decoded once. A layer that is used and not trained finds its norms once.

mod layer;

use std::collections::BTreeMap;

use peft_core::geometry::is_part_of;
use peft_core::{
    BaseParam, CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Proj,
    Rule, Site, Start, Targets,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::family::{key, place};
use crate::lora::{Lora, peft};
pub use layer::DoraLinear;

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

    /// The norms of their weights are found once, and `rank` rows that are no tokens go through them.
    fn needs_bare_layers(&self) -> bool {
        true
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

#[cfg(test)]
mod tests;
