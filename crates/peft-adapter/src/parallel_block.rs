//! Parallel blocks: several methods in one model and one pass, each on its own copy of the texts.
//!
//! Paper: Rücklé et al. 2021, "AdapterDrop: On the Efficiency of Adapters in Transformers", arXiv
//! 2010.11918; AdapterHub's `Parallel` (Poth et al. 2023, arXiv 2311.11077).
//! Seam: those of the parts, which never meet. A text is copied where it is embedded (AdapterHub: at
//! the lowest part). Every copy has a loss of its own, and the training loss is their sum, so that
//! the parts learn what each would learn alone; a task head is one for all and learns from all, and
//! the norm that gradients are clipped to is that of all together. The answer to a text is the
//! ensemble's: the mean of the copies' logits, which for classes is that of their log-probabilities.

use peft_core::compose::{Joint, Part, Seam, any_fills, seated};
use peft_core::{Composition, CoreError, Fields, Foreign, Geometry, MethodInfo, Start};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Configuration of a parallel block, `kind = "parallel_block"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParallelBlock {
    /// The methods, in the order of their copies.
    pub parts: Vec<Part>,
}

impl Composition for ParallelBlock {
    const INFO: MethodInfo = MethodInfo {
        kind: "parallel_block",
        name: "Parallel block",
        paper: "Rücklé et al. 2021, arXiv 2010.11918",
        seam: "those of its parts, each on its own copy of a text",
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
                    Part::of(crate::examples::compacter()),
                    Part::of(crate::Stack {
                        parts: vec![Part::of(parallel), Part::of(pfeiffer)],
                    }),
                    Part::of(houlsby).frozen(),
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
        Joint::Apart
    }

    fn adapter_hub_block(&self, geometry: &Geometry, _name: &str) -> Option<Foreign> {
        self.is_known_there(geometry)
            .then(|| Foreign::new(json!({"type": "Parallel"}), Vec::new()))
    }

    fn from_adapter_hub_block(fields: &mut Fields) -> Result<Option<Self>, CoreError> {
        if fields.peek("type") != "Parallel" {
            return Ok(None);
        }
        fields.ignore(&["type"]);
        let parts = fields.require("parts")?;
        Ok(Some(Self { parts }))
    }
}

impl ParallelBlock {
    /// Whether AdapterHub computes the same: it prepares the input of all parts as that of the first,
    /// has the first one's invertible adapter on all copies, fails on parallel adapters (of Llama) and
    /// has whole layers in no block.
    fn is_known_there(&self, geometry: &Geometry) -> bool {
        let seats = |part| -> Vec<_> {
            let sites = seated(std::slice::from_ref(part), geometry).into_iter();
            sites.map(|site| (site.layer, site.role)).collect()
        };
        let mut pairs = self.parts.iter().zip(self.parts.iter().skip(1));
        let of_one_sort = pairs.all(|(a, b)| a.kind() == b.kind() && seats(a) == seats(b));
        let unknown = |part: &Part| ["parallel", "mam", "loreft"].contains(&part.kind());
        of_one_sort
            && !self.parts.iter().any(unknown)
            && !any_fills(&self.parts, Seam::Ends, geometry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(ParallelBlock);
}
