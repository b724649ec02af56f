//! The linear layer with a gated low-rank update.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Dense, Gate, Init, Pass, Proj, Projection, Site, kernels};

use super::Lora;

/// A linear layer with a low-rank update, `y = x W + b + gate * dropout(x) A B`.
#[derive(Module, Debug)]
pub struct GatedLora {
    base: Proj,
    /// `[d_in, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b: Param<Tensor<2>>,
    gate: Gate,
    dropout: Dropout,
}

impl GatedLora {
    pub(crate) fn new(lora: &Lora, site: &Site, base: Proj, init: &mut Init) -> Self {
        let rank = lora.rank_at(&site.path);
        Self {
            a: Param::from_tensor(init.kaiming_uniform([site.d_in, rank], site.d_in)),
            b: Param::from_tensor(init.zeros([rank, site.d_out])),
            gate: Gate::new(site.d_in, init).counting(lora.counts_padding),
            dropout: DropoutConfig::new(lora.dropout).init(),
            base,
        }
    }
}

impl Projection for GatedLora {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        let gate = self.gate.forward(x.clone(), pass);
        let h = kernels::linear(self.dropout.forward(x), self.a.val(), None);
        kernels::linear_onto(y, h * gate, self.b.val())
    }

    /// The weight that a text of a half-open gate sees; there is no one weight for all.
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) + self.a.val().matmul(self.b.val()).mul_scalar(0.5)
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias()
    }

    fn merge(&self, _pass: &Pass<'_>) -> Option<Dense> {
        None
    }

    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }

    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{device, largest, site, stirred};
    use peft_core::contract::random;
    use peft_core::{Method, Role};

    #[test]
    fn the_gate_scales_the_update_of_every_text_and_alpha_does_not() {
        let lora = |alpha| Lora {
            rank: 2,
            alpha,
            gating: true,
            ..Lora::default()
        };
        let site = site(Role::Query, 6, 5);
        let layer = stirred(&lora(1.0), &site);
        let gated: &GatedLora = layer.downcast_ref().unwrap();
        let (x, pass) = (random([2, 3, 6], &device()), Pass::new());
        let update = x.clone().matmul(gated.a.val().unsqueeze());
        let update = update.matmul(gated.b.val().unsqueeze());
        let gates = gated.gate.forward(x.clone(), &pass);
        assert_eq!(gates.dims(), [2, 1, 1]);
        let expected = gated.base.forward(x.clone(), &pass) + update * gates;
        assert!(largest(layer.forward(x, &pass) - expected) < 1e-5);
        assert!(layer.merge(&pass).is_none() && lora(1.0).needs_own_rows());
    }
}
