//! Compacter++: Pfeiffer's adapters with hypercomplex layers.
//!
//! Paper: Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
//! arXiv 2106.04647.
//! Seam: sublayers. `y' = y + up(f(down(s)))` after the feed-forward sublayer, where `s` is the
//! residual sum, normalised in post-norm models; the rules of all layers are shared state.
//! AdapterHub's `compacter++`.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{MethodInfo, Pass, Start, Sublayer, Tap, TapSlot};

use crate::adapter::Kind;
use crate::pfeiffer::PfeifferKind;
use crate::phm::PhmBottleneck;
use crate::phm_adapter::{PhmAdapter, PhmKind};

/// Configuration of Compacter++, `kind = "compacter_plus"`.
pub type CompacterPlus = PhmAdapter<CompacterPlusKind>;

/// Where Compacter++'s bottlenecks sit.
#[derive(Clone, Debug, PartialEq)]
pub struct CompacterPlusKind;

impl PhmKind for CompacterPlusKind {
    const INFO: MethodInfo = MethodInfo {
        kind: "compacter_plus",
        name: "Compacter++",
        paper: "Karimi Mahabadi et al. 2021, arXiv 2106.04647",
        seam: "sublayer: feed-forward; shared state",
        formula: "2 r (d + m) + d + m per layer + n^3",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };
    type Plain = PfeifferKind;

    fn slot(adapter: PhmBottleneck) -> TapSlot {
        TapSlot::new(SummedPhmAdapter { adapter })
    }
}

/// A hypercomplex adapter that reads the residual sum and adds to the sublayer's output.
#[derive(Module, Debug)]
pub struct SummedPhmAdapter {
    adapter: PhmBottleneck,
}

impl Tap for SummedPhmAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        self.adapter.forward(sublayer.summed(), pass) + sublayer.output
    }

    fn settled(&self, pass: &Pass<'_>) -> Option<TapSlot> {
        Some(PfeifferKind::slot(self.adapter.plain(pass)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(CompacterPlus);
}
