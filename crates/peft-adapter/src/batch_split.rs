//! Batch splits: every row is the matter of one of several methods, by the task it belongs to.
//!
//! Paper: Poth et al. 2023, "Adapters: A Unified Library for Parameter-Efficient and Modular Transfer
//! Learning", arXiv 2311.11077.
//! Seam: those of the parts. AdapterHub's `BatchSplit` goes by the row's number in the batch, which
//! training shuffles; here part `i` has the rows of task `i`.

use peft_core::blend::Weight;
use peft_core::compose::{Joint, Part};
use peft_core::{Composition, MethodInfo, Start};
use serde::{Deserialize, Serialize};

/// Configuration of a batch split, `kind = "batch_split"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSplit {
    /// The methods, in the order of the tasks.
    pub parts: Vec<Part>,
}

impl Composition for BatchSplit {
    const INFO: MethodInfo = MethodInfo {
        kind: "batch_split",
        name: "Batch split",
        paper: "Poth et al. 2023, arXiv 2311.11077",
        seam: "those of its parts",
        formula: "those of its parts together",
        start: Start::Near(0.1),
        mergeable: false,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        // The contract's rows are all of task 0, so the other part must be one that is not trained.
        let (pfeiffer, houlsby, _) = crate::examples::bottlenecks();
        vec![Self {
            parts: vec![Part::of(pfeiffer), Part::of(houlsby).frozen()],
        }]
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn parts_mut(&mut self) -> &mut Vec<Part> {
        &mut self.parts
    }

    fn joint(&self) -> Joint {
        let tasks = 0..self.parts.len();
        Joint::Mixed(tasks.map(Weight::Task).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(BatchSplit);
}
