//! Full fine-tuning: every parameter of the base is trained.
//!
//! Seam: none. The baseline every paper compares against.

use peft_core::{BaseParam, Geometry, Method, MethodConfig, MethodInfo, Start};
use serde::{Deserialize, Serialize};

/// Configuration of full fine-tuning, `kind = "full"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Full {}

impl MethodConfig for Full {
    const INFO: MethodInfo = MethodInfo {
        kind: "full",
        name: "Full fine-tuning",
        paper: "baseline",
        seam: "none: unfreezes the base",
        formula: "all of the base",
        start: Start::Identity,
        mergeable: true,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        vec![Full {}]
    }
}

impl Method for Full {
    fn trains(&self, _param: &BaseParam) -> bool {
        true
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.base_parameters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Full);
}
