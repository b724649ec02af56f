//! Adapter+: one bottleneck behind every layer, with a trained factor for each feature.
//!
//! Paper: Steitz and Roth 2024, "Adapters Strike Back", arXiv 2406.06820.
//! Seam: the whole layer. `h' = h + scaling * up(f(down(h)))` on the layer's output `h`, normalised
//! in post-norm models; AdapterHub's `adapter_plus`, with its stochastic depth while training.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{Activation, MethodInfo, Pass, Role, Start, Sublayer, Tap, TapSlot};

use crate::adapter::{Adapter, Kind};
use crate::bottleneck::{AdapterInit, Bottleneck, LearnedScaling, Scaling};

/// Configuration of Adapter+, `kind = "adapter_plus"`.
pub type AdapterPlus = Adapter<AdapterPlusKind>;

/// Where Adapter+ has its bottlenecks.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterPlusKind;

impl Kind for AdapterPlusKind {
    const INFO: MethodInfo = MethodInfo {
        kind: "adapter_plus",
        name: "AdapterPlus",
        paper: "Steitz and Roth 2024, arXiv 2406.06820",
        seam: "whole layer",
        formula: "2 m d + 2 d + m per layer",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };
    const ROLES: &'static [Role] = &[Role::AfterLayer];
    const PARALLEL: bool = false;
    const READS_SUM: bool = true;
    const REDUCTION_FACTOR: usize = 96;
    const NON_LINEARITY: Activation = Activation::Gelu;
    const SCALING: Scaling = Scaling::Learned(LearnedScaling::Channel);
    const INIT: AdapterInit = AdapterInit::Houlsby;
    const STOCHASTIC_DEPTH: f64 = 0.1;

    fn slot(adapter: Bottleneck) -> TapSlot {
        TapSlot::new(LayerAdapter { adapter })
    }
}

/// An adapter behind a whole layer.
#[derive(Module, Debug)]
pub struct LayerAdapter {
    adapter: Bottleneck,
}

impl Tap for LayerAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let h = sublayer.output;
        self.adapter.add_to(h.clone(), h, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(AdapterPlus);

    #[test]
    fn defaults_are_those_of_adapterhub() {
        let ours = AdapterPlus::default();
        assert_eq!(ours.non_linearity, Activation::Gelu);
        assert_eq!(ours.scaling, Scaling::Learned(LearnedScaling::Channel));
        assert_eq!(ours.skip_scaling, Scaling::Fixed(1.0));
        assert_eq!(ours.init, AdapterInit::Houlsby);
        assert_eq!((ours.stochastic_depth, ours.dropout), (0.1, 0.0));
        assert_eq!(ours.width(0, 768).unwrap(), 8);
        assert!(ours.leave_out.is_empty() && ours.inv_adapter.is_none() && !ours.gating);
    }
}
