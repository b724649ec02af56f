//! Houlsby adapters: a bottleneck with a residual after the attention and after the feed-forward
//! sublayer of every layer.
//!
//! Paper: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751.
//! Seam: sublayers. `y' = y + up(f(down(y)))` on the sublayer's output `y`, before the residual sum;
//! AdapterHub's `double_seq_bn`.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role, Start,
    Sublayer, Tap, TapSlot, check,
};
use serde::{Deserialize, Serialize};

use crate::bottleneck::{AdapterInit, Bottleneck, Width, width};

/// Configuration of Houlsby adapters, `kind = "houlsby"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Houlsby {
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

impl Default for Houlsby {
    fn default() -> Self {
        Self {
            bottleneck: None,
            reduction_factor: None,
            non_linearity: Activation::Swish,
            dropout: 0.0,
            init: AdapterInit::Bert,
        }
    }
}

impl Houlsby {
    fn width(&self, d: usize) -> Result<usize, CoreError> {
        width(
            self.bottleneck,
            self.reduction_factor,
            Width::ReductionFactor(16),
            d,
        )
    }
}

impl MethodConfig for Houlsby {
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

    fn examples() -> Vec<Self> {
        vec![
            Houlsby {
                bottleneck: Some(3),
                ..Self::default()
            },
            Houlsby {
                reduction_factor: Some(2),
                non_linearity: Activation::Relu,
                init: AdapterInit::Mam,
                ..Self::default()
            },
        ]
    }
}

impl Method for Houlsby {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::dropout(self.dropout)?;
        self.width(geometry.width).map(|_| ())
    }

    fn tap(&self, _layer: usize, _role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        let m = self.width(d).ok()?;
        let adapter = Bottleneck::new((d, m), self.non_linearity, self.dropout, self.init, init);
        Some(TapSlot::new(SerialAdapter { adapter }))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let d = geometry.width;
        let each = self.width(d).map_or(0, |m| Bottleneck::parameters(d, m));
        geometry.layers * geometry.sublayers.len() * each
    }

    fn size(&self) -> Option<u64> {
        self.bottleneck.map(|m| m as u64)
    }
}

/// An adapter behind a sublayer.
#[derive(Module, Debug)]
pub struct SerialAdapter {
    adapter: Bottleneck,
}

impl Tap for SerialAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        self.adapter.forward(y.clone()) + y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Houlsby);
}
