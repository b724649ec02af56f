//! Averages: the outputs of several methods, weighted.
//!
//! Paper: Wang et al. 2021, "Efficient Test Time Adapter Ensembling for Low-resource Language
//! Varieties", arXiv 2109.04877.
//! Seam: those of the parts. Every place gives `base + sum of weight * (part - base)`. AdapterHub's
//! `Average` divides by the number of parts once more (release 1.3.0), so nothing is exchanged.

use peft_core::blend::Weight;
use peft_core::compose::{Joint, Part};
use peft_core::{Composition, CoreError, Geometry, MethodInfo, Start};
use serde::{Deserialize, Serialize};

/// Configuration of an average, `kind = "average"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Average {
    /// The methods.
    pub parts: Vec<Part>,
    /// A weight for each; the same for all where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f64>>,
    /// Whether the weights are divided by their sum.
    #[serde(default = "yes")]
    pub normalize_weights: bool,
}

fn yes() -> bool {
    true
}

impl Average {
    fn weights(&self) -> Vec<f64> {
        let equal = || vec![1.0 / self.parts.len() as f64; self.parts.len()];
        match &self.weights {
            None => equal(),
            Some(weights) if self.normalize_weights => {
                let sum: f64 = weights.iter().sum();
                weights.iter().map(|weight| weight / sum).collect()
            }
            Some(weights) => weights.clone(),
        }
    }
}

impl Composition for Average {
    const INFO: MethodInfo = MethodInfo {
        kind: "average",
        name: "Average",
        paper: "Wang et al. 2021, arXiv 2109.04877",
        seam: "those of its parts",
        formula: "those of its parts together",
        start: Start::Near(0.1),
        mergeable: false,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        let (pfeiffer, houlsby, parallel) = crate::examples::bottlenecks();
        vec![
            Self {
                parts: vec![Part::of(pfeiffer), Part::of(houlsby)],
                weights: None,
                normalize_weights: true,
            },
            Self {
                parts: vec![
                    Part::of(parallel),
                    Part::of(crate::examples::compacter()).frozen(),
                ],
                weights: Some(vec![3.0, 1.0]),
                normalize_weights: true,
            },
        ]
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn parts_mut(&mut self) -> &mut Vec<Part> {
        &mut self.parts
    }

    fn joint(&self) -> Joint {
        let weights = self.weights().into_iter();
        Joint::Mixed(weights.map(Weight::Fixed).collect())
    }

    fn check_own(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        match self.weights().iter().all(|weight| weight.is_finite()) {
            true => Ok(()),
            false => {
                let expected = "finite numbers with a sum other than 0";
                let found = format!("{:?}", self.weights.as_deref().unwrap_or_default());
                Err(CoreError::bad_value("weights", found, expected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Average);
}
