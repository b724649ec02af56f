//! AdaLoRA: a low-rank update in the form of a singular value decomposition.
//!
//! Paper: Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient
//! Fine-Tuning", arXiv 2303.10512.
//! Seam: linear layers. `y = x W + b + scaling * (dropout(x) A * e) B` with
//! `scaling = alpha / (init_rank + 1e-5)`; while training, `orth_reg_weight` times the mean distance
//! of all `A' A` and `B B'` from the identity is added to the loss. `A` and `B` start normal with
//! a deviation of 0.02, `e` at zero.
//!
//! While training, triplets are pruned by their importance as HF PEFT's `RankAllocator` does after
//! each optimizer step: from all of them to `target_rank` a layer in the mean. What is pruned has a
//! zero in `e`; the tensors keep their size, and a `rank_pattern` of a file leaves rows out. From its
//! small start it takes learning rates several times LoRA's.

mod allocate;
mod layer;

use std::collections::BTreeMap;

use peft_core::{
    CoreError, Fields, Foreign, Form, Geometry, Init, Method, MethodConfig, MethodInfo, Proj,
    Regulator, Rule, SharedSlot, Site, Start, Targets, check, exchange::peft_targets,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::allocate::Allocator;
use crate::family::{finite, key, number, peft_targets_of, place, selected};
pub use layer::{AdaLoraLinear, AdaLoraShared};

/// Configuration of AdaLoRA, `kind = "adalora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaLora {
    /// Rank of every update before any is pruned.
    pub init_rank: usize,
    /// Mean rank the schedule ends at.
    pub target_rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Dropout on the input of the update while training.
    pub dropout: f64,
    /// Factor on the orthogonality loss.
    pub orth_reg_weight: f64,
    /// Steps of training in all, which a run must have; those of the run where 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub total_steps: usize,
    /// Steps before the first pruning.
    pub tinit: usize,
    /// Steps after the last pruning.
    pub tfinal: usize,
    /// Steps between two prunings.
    pub delta_t: usize,
    /// Smoothing of the importances.
    pub beta1: f64,
    /// Smoothing of their uncertainty.
    pub beta2: f64,
    /// Which of its `init_rank` triplets a layer has kept, by its path; all where it is not named.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, Vec<bool>>,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for AdaLora {
    fn default() -> Self {
        Self {
            init_rank: 12,
            target_rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            orth_reg_weight: 0.5,
            total_steps: 0,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            rank_pattern: BTreeMap::new(),
            targets: Targets::Default,
        }
    }
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

impl AdaLora {
    /// The rank at a layer, 0 where all of it was pruned.
    fn rank_at(&self, site: &Site) -> usize {
        let kept = self.rank_pattern.get(&site.path);
        kept.map_or(self.init_rank, |kept| kept.iter().filter(|k| **k).count())
    }

    /// The scaling does not follow the pruning.
    fn scaling(&self) -> f64 {
        self.alpha / (self.init_rank as f64 + 1e-5)
    }

    /// Refuses a schedule that leaves no step for the pruning.
    fn check_phases(&self, steps: usize) -> Result<(), CoreError> {
        if self.tinit.saturating_add(self.tfinal) < steps {
            return Ok(());
        }
        let expected = format!(
            "less: with the {} of `tfinal` it leaves none of {steps} steps for the pruning",
            self.tfinal
        );
        Err(CoreError::bad_value("tinit", self.tinit, &expected))
    }

    fn check_schedule(&self) -> Result<(), CoreError> {
        let refuse =
            |key, value: usize, expected: &str| Err(CoreError::bad_value(key, value, expected));
        if self.total_steps > 0 {
            self.check_phases(self.total_steps)?;
        }
        if self.delta_t == 0 {
            return refuse("delta_t", 0, "at least 1");
        }
        if self.target_rank > self.init_rank {
            return refuse("target_rank", self.target_rank, "at most `init_rank`");
        }
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(CoreError::bad_value(key, beta, "above 0 and below 1"));
            }
        }
        Ok(())
    }

    fn check_pattern(&self, geometry: &Geometry) -> Result<(), CoreError> {
        for (path, kept) in &self.rank_pattern {
            if !selected(&self.targets, geometry).any(|site| site.path == *path) {
                let expected = "the path of a target";
                return Err(CoreError::bad_value("rank_pattern", path, expected));
            }
            if kept.len() != self.init_rank {
                let expected = format!("{} values for `{path}`, one a rank", self.init_rank);
                return Err(CoreError::bad_value("rank_pattern", kept.len(), &expected));
            }
        }
        Ok(())
    }
}

impl MethodConfig for AdaLora {
    const INFO: MethodInfo = MethodInfo {
        kind: "adalora",
        name: "AdaLoRA",
        paper: "Zhang et al. 2023, arXiv 2303.10512",
        seam: "linear layers, auxiliary loss, steps",
        formula: "r (in + out + 1) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("init_rank"),
    };

    fn examples() -> Vec<Self> {
        let of = |init_rank| AdaLora {
            init_rank,
            target_rank: 1,
            ..Self::default()
        };
        vec![
            of(2),
            AdaLora {
                targets: Targets::all_linear(),
                ..of(3)
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "ADALORA" {
            return Ok(None);
        }
        // `r` has no meaning here; the rest says nothing of what is computed: no weight is tied to a
        // linear layer of the blocks, and other targets are refused.
        fields.ignore(&[
            "r",
            "init_lora_weights",
            "qalora_group_size",
            "ensure_weight_tying",
        ]);
        let pattern: Map<String, Value> = fields.take("rank_pattern")?.unwrap_or_default();
        let mut rank_pattern = BTreeMap::new();
        for (name, kept) in pattern {
            let path = name.trim_end_matches(".default");
            let path = path.strip_suffix(".lora_E").unwrap_or(path);
            let parsed = serde_json::from_value(kept.clone());
            let expected = "a list of booleans for each layer";
            let parsed = parsed.map_err(|_| fields.unsupported("rank_pattern", &kept, expected))?;
            rank_pattern.insert(path.to_string(), parsed);
        }
        let alpha: f64 = fields.take("lora_alpha")?.unwrap_or(8.0);
        let init_rank: usize = fields.take("init_r")?.unwrap_or(12);
        Ok(Some(AdaLora {
            targets: peft_targets_of(fields, geometry)?,
            target_rank: fields.take("target_r")?.unwrap_or(8),
            // PEFT puts the rank in place of an `alpha` that is not positive.
            alpha: if alpha > 0.0 { alpha } else { init_rank as f64 },
            init_rank,
            dropout: fields.take("lora_dropout")?.unwrap_or(0.0),
            orth_reg_weight: fields.take("orth_reg_weight")?.unwrap_or(0.5),
            total_steps: fields.require("total_step")?,
            tinit: fields.take("tinit")?.unwrap_or(0),
            tfinal: fields.take("tfinal")?.unwrap_or(0),
            delta_t: fields.take("deltaT")?.unwrap_or(1),
            beta1: fields.take("beta1")?.unwrap_or(0.85),
            beta2: fields.take("beta2")?.unwrap_or(0.85),
            rank_pattern,
        }))
    }
}

impl Method for AdaLora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if self.init_rank == 0 {
            return Err(CoreError::bad_value("init_rank", 0, "at least 1"));
        }
        finite("alpha", self.alpha)?;
        check::dropout(self.dropout)?;
        if !(self.orth_reg_weight >= 0.0 && self.orth_reg_weight.is_finite()) {
            let (value, expected) = (self.orth_reg_weight, "a finite number of at least 0");
            return Err(CoreError::bad_value("orth_reg_weight", value, expected));
        }
        self.check_schedule()?;
        self.targets.select(&geometry.sites)?;
        self.check_pattern(geometry)
    }

    fn shared(&self, geometry: &Geometry, _init: &mut Init) -> Option<SharedSlot> {
        let matrices = 2 * selected(&self.targets, geometry).count();
        let weight = self.orth_reg_weight / matrices as f64;
        Some(SharedSlot::new(AdaLoraShared { weight }))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (rank, scaling) = (self.rank_at(site), self.scaling());
        let layer = AdaLoraLinear::new(site, rank, scaling, self.dropout, base, init);
        Proj::new(layer)
    }

    fn regulator(
        &self,
        steps: usize,
        _init: Init,
    ) -> Result<Option<Box<dyn Regulator>>, CoreError> {
        if self.total_steps > 0 && self.total_steps != steps {
            let expected = format!("{steps}, the steps of this run, or left out");
            let found = self.total_steps;
            return Err(CoreError::bad_value("total_steps", found, &expected));
        }
        self.check_phases(steps)?;
        Ok(Some(Box::new(Allocator::new(self, steps))))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites
            .map(|site| self.rank_at(site) * (site.d_in + site.d_out + 1))
            .sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.init_rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let kept = self.rank_pattern.iter();
        let pattern: Map<String, Value> = kept
            .map(|(path, kept)| (format!("{path}.lora_E"), json!(kept)))
            .collect();
        let pattern = (!pattern.is_empty()).then_some(pattern);
        // PEFT wants a number, which only matters to training.
        let total_step = match self.total_steps {
            0 => self.tinit.saturating_add(self.tfinal).saturating_add(1),
            given => given,
        };
        let fields = json!({
            "peft_type": "ADALORA", "init_r": self.init_rank, "target_r": self.target_rank,
            "r": 8, "lora_alpha": number(self.alpha), "lora_dropout": self.dropout,
            "orth_reg_weight": self.orth_reg_weight, "total_step": total_step,
            "tinit": self.tinit, "tfinal": self.tfinal, "deltaT": self.delta_t,
            "beta1": self.beta1, "beta2": self.beta2, "rank_pattern": pattern,
            "target_modules": peft_targets(&sites, geometry), "bias": "none",
            "fan_in_fan_out": geometry.keeps_weights_in_out(), "init_lora_weights": true,
        });
        let mut rules = Vec::new();
        for site in sites {
            let rank = self.rank_at(site);
            rules.push(Rule::transposed(place(site, "a"), key(site, "lora_A")));
            rules.push(Rule::transposed(place(site, "b"), key(site, "lora_B")));
            let form = Form::Shaped {
                ours: vec![rank],
                theirs: vec![rank, 1],
            };
            rules.push(Rule::new(place(site, "e"), key(site, "lora_E"), form));
        }
        Some(Foreign::new(fields, rules))
    }
}

#[cfg(test)]
mod tests;
