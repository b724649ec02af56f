//! Pfeiffer adapters: one bottleneck a layer, after the feed-forward sublayer.
//!
//! Paper: Pfeiffer et al. 2020, "AdapterFusion: Non-Destructive Task Composition", arXiv 2005.00247.
//! Seam: sublayers. `y' = y + up(f(down(s)))` where `s` is the residual sum, normalised in post-norm
//! models; AdapterHub's `seq_bn`.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role, Start,
    Sublayer, Tap, TapSlot, check,
};
use serde::{Deserialize, Serialize};

use crate::bottleneck::{AdapterInit, Bottleneck, Width, width};

/// Configuration of Pfeiffer adapters, `kind = "pfeiffer"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pfeiffer {
    /// Width of the bottleneck; or give `reduction_factor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<usize>,
    /// The model's width over the bottleneck's; 16 where neither is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction_factor: Option<usize>,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's input while training.
    pub dropout: f64,
    /// How the weights start.
    pub init: AdapterInit,
}

impl Default for Pfeiffer {
    fn default() -> Self {
        Self {
            bottleneck: None,
            reduction_factor: None,
            non_linearity: Activation::Relu,
            dropout: 0.0,
            init: AdapterInit::Bert,
        }
    }
}

impl Pfeiffer {
    fn width(&self, d: usize) -> Result<usize, CoreError> {
        width(
            self.bottleneck,
            self.reduction_factor,
            Width::ReductionFactor(16),
            d,
        )
    }
}

impl MethodConfig for Pfeiffer {
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

    fn examples() -> Vec<Self> {
        vec![
            Pfeiffer {
                bottleneck: Some(3),
                ..Self::default()
            },
            Pfeiffer {
                reduction_factor: Some(2),
                non_linearity: Activation::Relu,
                init: AdapterInit::Mam,
                ..Self::default()
            },
        ]
    }
}

impl Method for Pfeiffer {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::dropout(self.dropout)?;
        self.width(geometry.width).map(|_| ())
    }

    fn tap(&self, _layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        if role != Role::AfterMlp {
            return None;
        }
        let m = self.width(d).ok()?;
        let adapter = Bottleneck::new((d, m), self.non_linearity, self.dropout, self.init, init);
        Some(TapSlot::new(PfeifferAdapter { adapter }))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let d = geometry.width;
        let each = self.width(d).map_or(0, |m| Bottleneck::parameters(d, m));
        geometry.layers * each
    }

    fn size(&self) -> Option<u64> {
        self.bottleneck.map(|m| m as u64)
    }
}

/// An adapter that reads the residual sum and adds to the sublayer's output.
#[derive(Module, Debug)]
pub struct PfeifferAdapter {
    adapter: Bottleneck,
}

impl Tap for PfeifferAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        self.adapter.forward(sublayer.summed()) + sublayer.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Pfeiffer);
}
