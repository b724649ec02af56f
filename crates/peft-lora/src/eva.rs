//! EVA: LoRA whose `A` starts along the directions in which the inputs of a layer vary most.
//!
//! Paper: Paischer et al. 2024, "One Initialization to Rule them All: Fine-tuning via Explained
//! Variance Adaptation", arXiv 2410.07170.
//! Seam: linear layers, a look at the data. The columns of `A` start as the principal components of
//! what goes into the layer over some batches of training data, `B` at zero. Ranks go to the layers
//! whose components explain the largest shares of their variance, up to `rho` times the rank each; as
//! many ranks in all as before. A layer left without any is not changed.
//! Differs from: HF PEFT updates a truncated decomposition batch by batch until it moves no further
//! (`tau`); here the covariance of a given number of batches is decomposed, which is what that
//! approximates. Ranks move between layers of different width, so that with `rho` above 1 the trained
//! parameters are known after the look: before it, and with `rho = 1`, they are LoRA's.

mod components;
mod inputs;
mod peft;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Looked, Method, MethodConfig, MethodInfo, Preview,
    Proj, Site, Start, Targets, check,
};
use serde::{Deserialize, Serialize};

use crate::family::selected;
use crate::lora::{Factors, Lora, LoraLinear};
use components::Components;
use inputs::Inputs;

/// Configuration of EVA, `kind = "eva"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eva {
    /// Rank of the update before ranks move between layers.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of `A` while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
    /// Scaling `alpha / sqrt(rank)`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// The highest rank of a layer is this many times `rank`; 1 leaves ranks where they are.
    pub rho: f64,
    /// Batches of training data that are looked at.
    pub batches: usize,
    /// Whether only tokens that are to be learned count, in place of all; a classifier's all do.
    pub use_label_mask: bool,
    /// Divides every direction by the root of its singular value.
    pub whiten: bool,
    /// Whether `alpha` follows the rank of a layer, so that all keep one scaling.
    pub adjust_scaling_factors: bool,
    /// The ranks that the look found, by path, where they are not `rank`; 0 is left out of the model.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Values of `alpha` that go with them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Where `A` starts; trained from there on, so that an adapter holds what became of it.
    #[serde(skip)]
    starts: Starts,
}

/// The start of `A`, `[d_in, rank]`, by path.
#[derive(Clone, Default, PartialEq)]
struct Starts(Arc<BTreeMap<String, TensorData>>);

impl fmt::Debug for Starts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {} layers", self.0.len())
    }
}

impl Default for Eva {
    fn default() -> Self {
        Lora::default().into()
    }
}

/// With the defaults of PEFT besides.
impl From<Lora> for Eva {
    fn from(lora: Lora) -> Self {
        Self {
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: lora.dropout,
            targets: lora.targets,
            rslora: lora.rslora,
            rho: 2.0,
            batches: 16,
            use_label_mask: true,
            whiten: false,
            adjust_scaling_factors: true,
            rank_pattern: lora.rank_pattern,
            alpha_pattern: lora.alpha_pattern,
            starts: Starts::default(),
        }
    }
}

/// Ranks move by at most this factor; beyond it no width leaves room.
const MOST_RHO: f64 = 1000.0;

impl Eva {
    /// LoRA with the same layers, those without a rank aside.
    fn lora(&self) -> Lora {
        let ranks = self.rank_pattern.iter().filter(|(_, rank)| **rank > 0);
        Lora {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.clone(),
            rslora: self.rslora,
            rank_pattern: ranks.map(|(path, rank)| (path.clone(), *rank)).collect(),
            alpha_pattern: self.alpha_pattern.clone(),
            ..Lora::default()
        }
    }

    /// Whether the layer has an update.
    fn updates(&self, site: &Site) -> bool {
        self.targets.contains(site) && self.rank_pattern.get(&site.path) != Some(&0)
    }

    /// The most components a layer may get.
    fn most(&self, site: &Site) -> usize {
        let most = (self.rank as f64 * self.rho).round_ties_even() as usize;
        most.min(site.d_in)
    }

    fn check_ranks(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        for site in selected(&self.targets, geometry) {
            if self.rank > site.d_in {
                let expected = format!("at most {}, the width into `{}`", site.d_in, site.path);
                return Err(CoreError::bad_value("rank", self.rank, &expected));
            }
        }
        for path in self.rank_pattern.keys() {
            if !selected(&self.targets, geometry).any(|site| site.path == *path) {
                let expected = "the path of a target";
                return Err(CoreError::bad_value("rank_pattern", path, expected));
            }
        }
        Ok(())
    }

    /// The ranks of layers, given the shares of variance that their components explain: the largest
    /// shares of all get one each. Of equal ones that of the earlier layer is taken first.
    fn ranks(&self, shares: &[Vec<f64>]) -> Vec<usize> {
        let of_layer = |(layer, shares): (usize, &Vec<f64>)| -> Vec<_> {
            shares.iter().map(|share| (*share, layer)).collect()
        };
        let mut all: Vec<(f64, usize)> = shares.iter().enumerate().flat_map(of_layer).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut ranks = vec![0; shares.len()];
        for (_, layer) in all.into_iter().take(self.rank * shares.len()) {
            ranks[layer] += 1;
        }
        ranks
    }

    /// The configuration with these ranks, and the layers starting at these components.
    fn with(&self, sites: &[&Site], components: Vec<Components>) -> Self {
        let shares: Vec<_> = components.iter().map(|c| c.shares.clone()).collect();
        let ranks = self.ranks(&shares);
        let mut eva = self.clone();
        let mut starts = BTreeMap::new();
        for ((site, rank), components) in sites.iter().zip(ranks).zip(components) {
            let path = || site.path.clone();
            if rank != self.rank {
                eva.rank_pattern.insert(path(), rank);
            }
            if rank != self.rank && rank > 0 && self.adjust_scaling_factors {
                let alpha = self.alpha * rank as f64 / self.rank as f64;
                eva.alpha_pattern.insert(path(), alpha);
            }
            if rank > 0 {
                starts.insert(path(), components.first(rank, self.whiten));
            }
        }
        eva.starts = Starts(Arc::new(starts));
        eva
    }
}

impl MethodConfig for Eva {
    const INFO: MethodInfo = MethodInfo {
        kind: "eva",
        name: "EVA",
        paper: "Paischer et al. 2024, arXiv 2410.07170",
        seam: "linear layers, a look at the data",
        formula: "r (in + out) per target, r its rank after the look",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Eva {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Eva {
                rank: 3,
                rslora: true,
                whiten: true,
                targets: Targets::all_linear(),
                ..Self::default()
            },
            Eva {
                rank: 3,
                rho: 1.0,
                adjust_scaling_factors: false,
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        peft::read(fields, geometry)
    }
}

impl Method for Eva {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if !(1.0..=MOST_RHO).contains(&self.rho) {
            let expected = format!("from 1 (ranks stay where they are) to {MOST_RHO}");
            return Err(CoreError::bad_value("rho", self.rho, &expected));
        }
        check::size("batches", self.batches)?;
        // Unlike LoRA's, the targets are linear layers only.
        self.targets.select(&geometry.sites)?;
        self.check_ranks(geometry)?;
        self.lora().check(geometry)
    }

    fn looks_at(&self) -> usize {
        self.batches
    }

    fn look(
        &self,
        geometry: &Geometry,
        preview: &dyn Preview,
    ) -> Result<Option<Looked>, CoreError> {
        let given = self
            .rank_pattern
            .keys()
            .chain(self.alpha_pattern.keys())
            .next();
        if let Some(path) = given {
            let expected = "left out before training: ranks are found in the data";
            return Err(CoreError::bad_value("rank_pattern", path, expected));
        }
        let sites: Vec<&Site> = selected(&self.targets, geometry).collect();
        let mut inputs = Inputs::default();
        preview.inputs(&self.targets, &mut |input| {
            let counted = match self.use_label_mask {
                true => &input.tokens.learned,
                false => &input.tokens.real,
            };
            inputs.add(input.site, input.x, counted.clone());
            Ok(())
        })?;
        let components = inputs.components(&sites, |site| self.most(site))?;
        Ok(Some(Looked::new(self.with(&sites, components))))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.updates(site) {
            return base;
        }
        let lora = self.lora();
        let Some(start) = self.starts.0.get(&site.path) else {
            // Without a look, for values that are about to be put in.
            return lora.project(site, base, init);
        };
        let a = Tensor::from_data(start.clone(), init.device());
        let b = init.zeros([lora.rank_at(&site.path), site.d_out]);
        let start = Factors::new(a, b);
        Proj::new(LoraLinear::starting_at(&lora, site, base, start))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let lora = self.lora();
        let sites = geometry.sites.iter().filter(|site| self.updates(site));
        sites
            .map(|site| lora.rank_at(&site.path) * (site.d_in + site.d_out))
            .sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        Some(peft::write(self, geometry))
    }
}

#[cfg(test)]
mod tests;
