//! Stacks: several methods in one model, at every place each on what the one before it gives.
//!
//! Paper: Pfeiffer et al. 2020, "MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual
//! Transfer", arXiv 2005.00052: a task adapter on a frozen language adapter, here `parts = [{ adapter
//! = "language" }, { kind = "pfeiffer" }]`.
//! Seam: those of the parts. Updates of one linear layer add up; AdapterHub's `Stack`.

use peft_core::compose::{Joint, Part};
use peft_core::{Composition, CoreError, Fields, Foreign, Geometry, MethodInfo, Start};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Configuration of a stack, `kind = "stack"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// The methods, the lowest first.
    pub parts: Vec<Part>,
}

impl Composition for Stack {
    const INFO: MethodInfo = MethodInfo {
        kind: "stack",
        name: "Stack",
        paper: "Pfeiffer et al. 2020, arXiv 2005.00052",
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
                parts: vec![Part::of(pfeiffer.clone()), Part::of(houlsby.clone())],
            },
            Self {
                parts: vec![
                    Part::of(houlsby).frozen(),
                    Part::of(crate::BitFit::default()),
                    Part::of(crate::examples::compacter()),
                    Part::of(parallel),
                    Part::of(Self {
                        parts: vec![Part::of(pfeiffer)],
                    }),
                ],
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
        Joint::InTurn
    }

    fn adapter_hub_block(&self, _geometry: &Geometry, _name: &str) -> Option<Foreign> {
        (!self.loses_parts_there()).then(|| Foreign::new(json!({"type": "Stack"}), Vec::new()))
    }

    fn from_adapter_hub_block(fields: &mut Fields) -> Result<Option<Self>, CoreError> {
        if fields.peek("type") != "Stack" {
            return Ok(None);
        }
        fields.ignore(&["type"]);
        let stack = Self {
            parts: fields.require("parts")?,
        };
        match stack.loses_parts_there() {
            false => Ok(Some(stack)),
            true => {
                let expected = "a stack without parallel adapters and LoRA: AdapterHub drops what is \
                                below them";
                Err(fields.unsupported("type", &json!("Stack"), expected))
            }
        }
    }
}

impl Stack {
    /// Whether AdapterHub would compute something else: a parallel adapter there starts from the
    /// sublayer's input, whatever stands below or above it in a stack, and a low-rank update from the
    /// output of the one below it.
    fn loses_parts_there(&self) -> bool {
        let differs = |part: &Part| ["parallel", "lora", "mam", "unipelt"].contains(&part.kind());
        self.parts.len() > 1 && self.parts.iter().any(differs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Stack);
}
