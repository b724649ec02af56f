//! Head only: the body stays frozen, the output head alone is trained (linear probing).
//!
//! Seam: none. A classifier's head is trained under every method; a language model whose head is
//! tied to the embeddings gets a copy of its own.

use peft_core::{BaseParam, Geometry, Method, MethodConfig, MethodInfo, Part, Start};
use serde::{Deserialize, Serialize};

/// Configuration of head-only training, `kind = "head"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadOnly {}

impl MethodConfig for HeadOnly {
    const INFO: MethodInfo = MethodInfo {
        kind: "head",
        name: "Head only",
        paper: "baseline",
        seam: "none: unfreezes the head",
        formula: "the head",
        start: Start::Identity,
        mergeable: true,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        vec![HeadOnly {}]
    }
}

impl Method for HeadOnly {
    fn trains(&self, param: &BaseParam) -> bool {
        param.part == Part::Head
    }

    fn unties_head(&self, _geometry: &Geometry) -> bool {
        true
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.head_parameters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(HeadOnly);
}
