//! Splits: every token of a row is the matter of one of several methods, by its position.
//!
//! Paper: Poth et al. 2023, "Adapters: A Unified Library for Parameter-Efficient and Modular Transfer
//! Learning", arXiv 2311.11077.
//! Seam: those of the parts; AdapterHub's `Split` of bottleneck adapters, whose rows must be as long as
//! the splits together: here the last part has whatever follows. Of a linear layer every token goes
//! through its own part's.

use peft_core::blend::Weight;
use peft_core::compose::{Joint, Part};
use peft_core::{Composition, CoreError, Geometry, MethodInfo, Start, check};
use serde::{Deserialize, Serialize};

/// Configuration of a split, `kind = "split"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The methods.
    pub parts: Vec<Part>,
    /// How many tokens of a row each of them has, in their order; the last has the rest.
    pub splits: Vec<usize>,
}

impl Composition for Split {
    const INFO: MethodInfo = MethodInfo {
        kind: "split",
        name: "Split",
        paper: "Poth et al. 2023, arXiv 2311.11077",
        seam: "those of its parts",
        formula: "those of its parts together",
        start: Start::Near(0.1),
        mergeable: false,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        let (pfeiffer, houlsby, _) = crate::examples::bottlenecks();
        vec![Self {
            parts: vec![Part::of(pfeiffer), Part::of(houlsby)],
            splits: vec![2],
        }]
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn parts_mut(&mut self) -> &mut Vec<Part> {
        &mut self.parts
    }

    fn joint(&self) -> Joint {
        let mut from = 0;
        let ends = self.splits.iter().map(|count| Some(*count)).chain([None]);
        let part = |count: Option<usize>| {
            let to = count.map_or(usize::MAX, |count| from + count);
            Weight::Tokens {
                from: std::mem::replace(&mut from, to),
                to,
            }
        };
        Joint::Mixed(ends.map(part).collect())
    }

    fn check_own(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        let mut splits = self.splits.iter();
        splits.try_for_each(|count| check::size("splits", *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Split);
}
