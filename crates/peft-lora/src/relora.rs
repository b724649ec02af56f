//! ReLoRA: LoRA that is merged and started again while it trains, for updates of high rank.
//!
//! Paper: Lialin et al. 2023, "ReLoRA: High-Rank Training Through Low-Rank Updates",
//! arXiv 2307.05695.
//! Seam: linear layers, steps. `y = x W + b + x M_A M_B + scaling * dropout(x) A B`. Every
//! `merge_every` steps `A` and `scaling * B` are added to the frozen stacks `M_A` and `M_B`, `A`
//! starts again Kaiming-uniform and `B` at zero, the optimizer forgets both, and the learning rate
//! rises again from zero over `rewarm_steps`.
//!
//! Differs from: the paper trains from scratch, begins with a phase of full-rank training, and at a
//! merge sets most of the optimizer's state to zero, by magnitude (99%); here a trained base takes the
//! place of the phase, and the state of `A` and `B` starts anew whole. The paper merges into the weight
//! itself. Here what was merged stays in factors: an adapter that carries it is `merges + 1` times the
//! size of LoRA's and not that of the base, the base may be packed, and nothing is rounded. Factors
//! cost two narrow products a pass from the first merge on, until `merge` makes one weight of all.

mod layer;

use peft_core::{
    Consequences, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Proj, Regulator,
    Seams, Site, Start, Step, Surgeon, Targets, check,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, selected};
pub use layer::ReLoraLinear;

/// Configuration of ReLoRA, `kind = "relora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReLora {
    /// Rank of every update.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of `A` while training.
    pub dropout: f64,
    /// Steps from one merge to the next.
    pub merge_every: usize,
    /// How many merges there is room for; a run must not make more.
    pub merges: usize,
    /// Steps over which the learning rate rises again after a merge.
    pub rewarm_steps: usize,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for ReLora {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            merge_every: 200,
            merges: 3,
            rewarm_steps: 10,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for ReLora {
    const INFO: MethodInfo = MethodInfo {
        kind: "relora",
        name: "ReLoRA",
        paper: "Lialin et al. 2023, arXiv 2307.05695",
        seam: "linear layers, steps",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        let of = |rank, merges| ReLora {
            rank,
            merges,
            ..Self::default()
        };
        vec![
            of(2, 3),
            ReLora {
                targets: Targets::all_linear(),
                ..of(3, 2)
            },
        ]
    }
}

impl Method for ReLora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        finite("alpha", self.alpha)?;
        check::dropout(self.dropout)?;
        for (key, value) in [("merge_every", self.merge_every), ("merges", self.merges)] {
            if value == 0 {
                return Err(CoreError::bad_value(key, 0, "at least 1"));
            }
        }
        // More would add no rank, and take more room than a dense matrix.
        let narrowest = self.targets.select(&geometry.sites)?.into_iter();
        let narrowest = narrowest.map(|site| site.d_in.min(site.d_out)).min();
        let most = narrowest.unwrap_or(0) / self.rank;
        if self.merges > most {
            let rank = self.rank;
            let expected =
                format!("at most {most}, which at rank {rank} fill the narrowest target");
            return Err(CoreError::bad_value("merges", self.merges, &expected));
        }
        Ok(())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        match self.targets.contains(site) {
            true => Proj::new(ReLoraLinear::new(self, site, base, init)),
            false => base,
        }
    }

    fn regulator(&self, steps: usize, init: Init) -> Result<Option<Box<dyn Regulator>>, CoreError> {
        // After the last step there is nothing left to train again.
        let merges = steps.saturating_sub(1) / self.merge_every;
        if merges > self.merges {
            let every = self.merge_every;
            let expected =
                format!("at least {merges}: {steps} steps with a merge after every {every}");
            return Err(CoreError::bad_value("merges", self.merges, &expected));
        }
        Ok(Some(Box::new(Restarts {
            merge_every: self.merge_every,
            rewarm_steps: self.rewarm_steps,
            steps,
            init,
        })))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites.map(|site| self.rank * (site.d_in + site.d_out)).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }
}

/// Merges and starts again after every so many steps.
struct Restarts {
    merge_every: usize,
    rewarm_steps: usize,
    steps: usize,
    init: Init,
}

impl Regulator for Restarts {
    fn after_step(&mut self, step: &Step<'_>, model: &mut dyn Seams) -> Consequences {
        if step.number == 1 {
            model.operate(&mut LeaveOutEmpty);
        }
        let mut merge = Merge {
            init: &mut self.init,
            consequences: Consequences::default(),
        };
        if step.number.is_multiple_of(self.merge_every) && step.number < self.steps {
            model.operate(&mut merge);
            merge.consequences.rewarm = (self.rewarm_steps > 0).then_some(self.rewarm_steps);
        }
        merge.consequences
    }
}

/// Tells the layers of a run that begins whether anything was merged before it.
struct LeaveOutEmpty;

impl Surgeon for LeaveOutEmpty {
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        match base.downcast_ref::<ReLoraLinear>() {
            Some(layer) => Proj::new(layer.clone().without_empty_stacks()),
            None => base,
        }
    }
}

struct Merge<'a> {
    init: &'a mut Init,
    consequences: Consequences,
}

impl Surgeon for Merge<'_> {
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        let Some(layer) = base.downcast_ref::<ReLoraLinear>() else {
            return base;
        };
        // An adapter that is trained further may come with its stacks full: it goes on as it is.
        match layer.clone().merged(self.init) {
            Some(merged) => {
                self.consequences.restarted.extend(merged.factors());
                Proj::new(merged)
            }
            None => base,
        }
    }
}

#[cfg(test)]
mod tests;
