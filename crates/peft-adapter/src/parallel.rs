//! Parallel adapters: one bottleneck a layer, beside the feed-forward sublayer.
//!
//! Paper: He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv
//! 2110.04366.
//! Seam: sublayers. `y' = y + scaling * up(f(down(x)))` on the residual stream `x` that enters the
//! sublayer; AdapterHub's `par_bn` with its fixed scaling of 4.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{Activation, MethodInfo, Pass, Role, Start, Sublayer, Tap, TapSlot};

use crate::adapter::{Adapter, Kind};
use crate::bottleneck::{AdapterInit, Bottleneck, Scaling};

/// Configuration of parallel adapters, `kind = "parallel"`.
pub type Parallel = Adapter<ParallelKind>;

/// Where Parallel's bottlenecks sit.
#[derive(Clone, Debug, PartialEq)]
pub struct ParallelKind;

impl Kind for ParallelKind {
    const INFO: MethodInfo = MethodInfo {
        kind: "parallel",
        name: "Parallel",
        paper: "He et al. 2022, arXiv 2110.04366",
        seam: "sublayer: feed-forward",
        formula: "2 m d + d + m per layer",
        start: Start::Identity,
        mergeable: false,
        size_key: Some("bottleneck"),
    };
    const ROLES: &'static [Role] = &[Role::AfterMlp];
    const PARALLEL: bool = true;
    const READS_SUM: bool = false;
    const REDUCTION_FACTOR: usize = 2;
    const NON_LINEARITY: Activation = Activation::Relu;
    const SCALING: Scaling = Scaling::Fixed(4.0);
    const INIT: AdapterInit = AdapterInit::Mam;

    fn slot(adapter: Bottleneck) -> TapSlot {
        TapSlot::new(ParallelAdapter { adapter })
    }
}

/// An adapter that reads what enters the sublayer and adds to its output.
#[derive(Module, Debug)]
pub struct ParallelAdapter {
    adapter: Bottleneck,
}

impl Tap for ParallelAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        self.adapter
            .add_to(sublayer.output, sublayer.residual, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Parallel);
}
