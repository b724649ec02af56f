//! Parallel adapters: one bottleneck a layer, beside the feed-forward sublayer.
//!
//! Paper: He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv
//! 2110.04366.
//! Seam: sublayers. `y' = y + scaling * up(f(down(x)))` on the residual stream `x` that enters the
//! sublayer; AdapterHub's `par_bn` with its fixed scaling of 4.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role, Start,
    Sublayer, Tap, TapSlot, check,
};
use serde::{Deserialize, Serialize};

use crate::bottleneck::{AdapterInit, Bottleneck, Width, width};

/// Configuration of parallel adapters, `kind = "parallel"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// Width of the bottleneck; or give `reduction_factor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<usize>,
    /// The model's width over the bottleneck's; 2 where neither is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction_factor: Option<usize>,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's input while training.
    pub dropout: f64,
    /// Factor on the bottleneck's output.
    pub scaling: f64,
    /// How the weights start.
    pub init: AdapterInit,
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            bottleneck: None,
            reduction_factor: None,
            non_linearity: Activation::Relu,
            dropout: 0.0,
            scaling: 4.0,
            init: AdapterInit::Mam,
        }
    }
}

impl Parallel {
    fn width(&self, d: usize) -> Result<usize, CoreError> {
        width(
            self.bottleneck,
            self.reduction_factor,
            Width::ReductionFactor(2),
            d,
        )
    }
}

impl MethodConfig for Parallel {
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

    fn examples() -> Vec<Self> {
        vec![
            Parallel {
                bottleneck: Some(3),
                ..Self::default()
            },
            Parallel {
                reduction_factor: Some(2),
                non_linearity: Activation::Relu,
                scaling: 1.0,
                ..Self::default()
            },
        ]
    }
}

impl Method for Parallel {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::dropout(self.dropout)?;
        if !self.scaling.is_finite() {
            return Err(CoreError::bad_value(
                "scaling",
                self.scaling,
                "a finite number",
            ));
        }
        self.width(geometry.width).map(|_| ())
    }

    fn tap(&self, _layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        if role != Role::AfterMlp {
            return None;
        }
        let m = self.width(d).ok()?;
        let adapter = Bottleneck::new((d, m), self.non_linearity, self.dropout, self.init, init);
        Some(TapSlot::new(ParallelAdapter {
            adapter,
            scaling: self.scaling,
        }))
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

/// An adapter that reads what enters the sublayer and adds to its output.
#[derive(Module, Debug)]
pub struct ParallelAdapter {
    adapter: Bottleneck,
    scaling: f64,
}

impl Tap for ParallelAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        sublayer.output
            + self
                .adapter
                .forward(sublayer.residual)
                .mul_scalar(self.scaling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Parallel);
}
