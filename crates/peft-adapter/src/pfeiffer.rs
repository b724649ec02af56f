//! Pfeiffer adapters: one bottleneck a layer, after the feed-forward sublayer.
//!
//! Paper: Pfeiffer et al. 2020, "AdapterFusion: Non-Destructive Task Composition", arXiv 2005.00247.
//! Seam: sublayers. `y' = y + up(f(down(s)))` where `s` is the residual sum, normalised in post-norm
//! models; AdapterHub's `seq_bn`.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{Activation, MethodInfo, Pass, Role, Start, Sublayer, Tap, TapSlot};

use crate::adapter::{Adapter, Kind};
use crate::bottleneck::{AdapterInit, Bottleneck, Scaling};

/// Configuration of Pfeiffer adapters, `kind = "pfeiffer"`.
pub type Pfeiffer = Adapter<PfeifferKind>;

/// Where Pfeiffer's bottlenecks sit.
#[derive(Clone, Debug, PartialEq)]
pub struct PfeifferKind;

impl Kind for PfeifferKind {
    const INFO: MethodInfo = MethodInfo {
        kind: "pfeiffer",
        name: "Pfeiffer",
        paper: "Pfeiffer et al. 2020, arXiv 2005.00247",
        seam: "sublayer: feed-forward",
        formula: "2 m d + d + m per layer",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };
    const ROLES: &'static [Role] = &[Role::AfterMlp];
    const PARALLEL: bool = false;
    const READS_SUM: bool = true;
    const REDUCTION_FACTOR: usize = 16;
    const NON_LINEARITY: Activation = Activation::Relu;
    const SCALING: Scaling = Scaling::Fixed(1.0);
    const INIT: AdapterInit = AdapterInit::Bert;

    fn slot(adapter: Bottleneck) -> TapSlot {
        TapSlot::new(PfeifferAdapter { adapter })
    }
}

/// An adapter that reads the residual sum and adds to the sublayer's output.
#[derive(Module, Debug)]
pub struct PfeifferAdapter {
    adapter: Bottleneck,
}

impl Tap for PfeifferAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let sum = sublayer.summed();
        self.adapter.add_to(sublayer.output, sum, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Pfeiffer);
}
