//! Compacter: Houlsby's adapters with hypercomplex layers.
//!
//! Paper: Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
//! arXiv 2106.04647.
//! Seam: sublayers. `y' = y + up(f(down(y)))` after the attention and after the feed-forward
//! sublayer; the rules of all layers are shared state. AdapterHub's `compacter`.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{MethodInfo, Pass, Start, Sublayer, Tap, TapSlot};

use crate::adapter::Kind;
use crate::houlsby::HoulsbyKind;
use crate::phm::PhmBottleneck;
use crate::phm_adapter::{PhmAdapter, PhmKind};

/// Configuration of Compacter, `kind = "compacter"`.
pub type Compacter = PhmAdapter<CompacterKind>;

/// Where Compacter's bottlenecks sit.
#[derive(Clone, Debug, PartialEq)]
pub struct CompacterKind;

impl PhmKind for CompacterKind {
    const INFO: MethodInfo = MethodInfo {
        kind: "compacter",
        name: "Compacter",
        paper: "Karimi Mahabadi et al. 2021, arXiv 2106.04647",
        seam: "sublayers: attention, feed-forward; shared state",
        formula: "2 (2 r (d + m) + d + m) per layer + n^3",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };
    type Plain = HoulsbyKind;

    fn slot(adapter: PhmBottleneck) -> TapSlot {
        TapSlot::new(SerialPhmAdapter { adapter })
    }
}

/// A hypercomplex adapter behind a sublayer.
#[derive(Module, Debug)]
pub struct SerialPhmAdapter {
    adapter: PhmBottleneck,
}

impl Tap for SerialPhmAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        self.adapter.forward(y.clone(), pass) + y
    }

    fn settled(&self, pass: &Pass<'_>) -> Option<TapSlot> {
        Some(HoulsbyKind::slot(self.adapter.plain(pass)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::{Geometry, Host, Init, Method, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(Compacter);

    fn toy() -> Geometry {
        Toy::build(&mut Init::new(0, &burn::tensor::Device::flex())).geometry()
    }

    #[test]
    fn a_bottleneck_that_the_products_do_not_divide_is_refused() {
        let compacter = Compacter {
            bottleneck: Some(6),
            ..Compacter::default()
        };
        let error = compacter.check(&toy()).unwrap_err().to_string();
        assert!(
            error.contains("`phm_dim` is 4, expected a divisor of the widths 8 and 6"),
            "{error}"
        );
    }

    #[test]
    fn shared_rules_are_counted_once_and_own_rules_in_every_layer() {
        let shared = Compacter {
            bottleneck: Some(4),
            ..Compacter::default()
        };
        let own = Compacter {
            shared_phm_rule: false,
            ..shared.clone()
        };
        // Four bottlenecks of width 4 in a model of width 8.
        assert_eq!(shared.parameters(&toy()), 4 * (2 * 12 + 12) + 64);
        assert_eq!(own.parameters(&toy()), 4 * (2 * 12 + 12 + 2 * 64));
    }
}
