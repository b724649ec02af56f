//! Invertible adapters: a function behind the embedding whose inverse stands before the head.
//!
//! Paper: Pfeiffer et al. 2020, "MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual
//! Transfer", arXiv 2005.00052; the coupling of Dinh et al. 2014 (NICE), arXiv 1410.8516.
//! Seam: both ends of the body. An option of the bottleneck adapters, AdapterHub's `seq_bn_inv` and
//! `double_seq_bn_inv`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{Activation, CoreError, Ends, Init, Pass, Rule, check, kernels};
use serde::{Deserialize, Serialize};

use crate::adapter::floor_div;

/// The kinds of invertible adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvAdapter {
    /// Two additive couplings.
    Nice,
}

/// Standard deviation of the weights at the start, as in BERT.
const STD: f64 = 0.02;

/// `y1 = x1 + f(x2)`, `y2 = x2 + g(y1)` on the two halves of the features.
#[derive(Module, Debug)]
pub struct NiceCoupling {
    f: Subnet,
    g: Subnet,
}

/// Two linear layers with a non-linearity between them.
#[derive(Module, Debug)]
struct Subnet {
    /// `[in, hidden]`
    down: Param<Tensor<2>>,
    /// `[hidden]`
    down_bias: Param<Tensor<1>>,
    /// `[hidden, out]`
    up: Param<Tensor<2>>,
    /// `[out]`
    up_bias: Param<Tensor<1>>,
    #[module(skip)]
    non_linearity: Activation,
}

/// The widths of the two halves; the second has the odd feature.
fn halves(d: usize) -> (usize, usize) {
    (d / 2, d - d / 2)
}

/// Width of the hidden layer of a half, rounded down as in AdapterHub.
fn hidden(half: usize, factor: f64) -> usize {
    floor_div(half, factor) as usize
}

impl NiceCoupling {
    /// A coupling in a model of width `d`.
    pub fn new(d: usize, factor: f64, non_linearity: Activation, init: &mut Init) -> Self {
        let (first, second) = halves(d);
        let mut subnet =
            |from, to| Subnet::new(from, hidden(from, factor), to, non_linearity, init);
        Self {
            f: subnet(second, first),
            g: subnet(first, second),
        }
    }

    /// Refuses a reduction factor that leaves no hidden layer.
    ///
    /// # Errors
    /// Names the key, what was found and what is allowed.
    pub fn check(d: usize, factor: f64) -> Result<(), CoreError> {
        let (narrow, _) = halves(d);
        let width = floor_div(narrow, factor);
        if factor.is_finite() && (1.0..=check::MOST as f64).contains(&width) {
            return Ok(());
        }
        let expected = format!("above 0 and at most half the model's width {d}");
        let key = "inv_adapter_reduction_factor";
        Err(CoreError::bad_value(key, factor, &expected))
    }

    /// Closed form of the number of parameters.
    pub fn parameters(d: usize, factor: f64) -> usize {
        let (first, second) = halves(d);
        let subnet = |from: usize, to: usize| {
            let h = hidden(from, factor);
            h * (from + to) + h + to
        };
        subnet(second, first) + subnet(first, second)
    }

    /// The tensors as AdapterHub keeps them below this path.
    pub(crate) fn rules(path: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (ours, theirs) in [("f", "F"), ("g", "G")] {
            for (layer, index) in [("down", 0), ("up", 2)] {
                let (place, key) = (
                    format!("ends/{ours}.{layer}"),
                    format!("{path}.{theirs}.{index}"),
                );
                rules.push(Rule::as_is(format!("{place}_bias"), format!("{key}.bias")));
                rules.push(Rule::transposed(place, format!("{key}.weight")));
            }
        }
        rules
    }

    fn split(x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let (first, second) = halves(x.dims()[2]);
        (x.clone().narrow(2, 0, first), x.narrow(2, first, second))
    }
}

impl Ends for NiceCoupling {
    fn enter(&self, embedded: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        let (x1, x2) = Self::split(embedded);
        let y1 = x1 + self.f.forward(x2.clone());
        let y2 = x2 + self.g.forward(y1.clone());
        Tensor::cat(vec![y1, y2], 2)
    }

    fn leave(&self, hidden: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        let (y1, y2) = Self::split(hidden);
        let x2 = y2 - self.g.forward(y1.clone());
        let x1 = y1 - self.f.forward(x2.clone());
        Tensor::cat(vec![x1, x2], 2)
    }
}

impl Subnet {
    fn new(
        from: usize,
        hidden: usize,
        to: usize,
        non_linearity: Activation,
        init: &mut Init,
    ) -> Self {
        Self {
            down: Param::from_tensor(init.normal([from, hidden], STD)),
            down_bias: Param::from_tensor(init.zeros([hidden])),
            up: Param::from_tensor(init.normal([hidden, to], STD)),
            up_bias: Param::from_tensor(init.zeros([to])),
            non_linearity,
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let h = kernels::linear(x, self.down.val(), Some(self.down_bias.val()));
        let h = self.non_linearity.forward(h);
        kernels::linear(h, self.up.val(), Some(self.up_bias.val()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};
    use peft_core::contract::random;

    #[test]
    fn leaving_undoes_entering() {
        let device = Device::flex();
        for d in [8, 9] {
            let mut init = Init::new(3, &device);
            let mut coupling = NiceCoupling::new(d, 2.0, Activation::Relu, &mut init);
            // Weights large enough that entering changes much.
            for net in [&mut coupling.f, &mut coupling.g] {
                let (down, up) = (net.down.dims(), net.up.dims());
                net.down = Param::from_tensor(init.normal(down, 1.0));
                net.up = Param::from_tensor(init.normal(up, 1.0));
            }
            let x = random([2, 3, d], &device);
            let pass = Pass::new();
            let y = coupling.enter(x.clone(), &pass);
            let moved: f32 = (y.clone() - x.clone()).abs().max().into_scalar();
            assert!(moved > 0.5, "{moved}");
            let back = coupling.leave(y, &pass).into_data();
            back.assert_approx_eq::<f32>(&x.into_data(), Tolerance::absolute(1e-4));
        }
    }

    #[test]
    fn a_factor_that_leaves_no_hidden_layer_is_refused() {
        assert!(NiceCoupling::check(8, 4.0).is_ok());
        for factor in [4.5, 0.0, -1.0, f64::NAN] {
            let error = NiceCoupling::check(8, factor).unwrap_err().to_string();
            assert!(error.contains("`inv_adapter_reduction_factor`"), "{error}");
        }
    }
}
