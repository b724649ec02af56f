//! Houlsby adapters: a bottleneck with a residual after the attention and after the feed-forward
//! sublayer of every layer.
//!
//! Paper: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751.
//! Seam: sublayers. `y' = y + up(f(down(y)))` on the sublayer's output `y`, before the residual sum;
//! AdapterHub's `double_seq_bn`.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{Activation, MethodInfo, Pass, Role, Start, Sublayer, Tap, TapSlot};

use crate::adapter::{Adapter, Kind};
use crate::bottleneck::{AdapterInit, Bottleneck, Scaling};

/// Configuration of Houlsby adapters, `kind = "houlsby"`.
pub type Houlsby = Adapter<HoulsbyKind>;

/// Where Houlsby's bottlenecks sit.
#[derive(Clone, Debug, PartialEq)]
pub struct HoulsbyKind;

impl Kind for HoulsbyKind {
    const INFO: MethodInfo = MethodInfo {
        kind: "houlsby",
        name: "Houlsby",
        paper: "Houlsby et al. 2019, arXiv 1902.00751",
        seam: "sublayers: attention, feed-forward",
        formula: "2 (2 m d + d + m) per layer",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };
    const ROLES: &'static [Role] = &[Role::AfterAttention, Role::AfterMlp];
    const PARALLEL: bool = false;
    const READS_SUM: bool = false;
    const REDUCTION_FACTOR: usize = 16;
    const NON_LINEARITY: Activation = Activation::Swish;
    const SCALING: Scaling = Scaling::Fixed(1.0);
    const INIT: AdapterInit = AdapterInit::Bert;

    fn slot(adapter: Bottleneck) -> TapSlot {
        TapSlot::new(SerialAdapter { adapter })
    }
}

/// An adapter behind a sublayer.
#[derive(Module, Debug)]
pub struct SerialAdapter {
    adapter: Bottleneck,
}

impl Tap for SerialAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        self.adapter.add_to(y.clone(), y, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Houlsby);
}
