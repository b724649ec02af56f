//! AdapterBias: a token-dependent shift of what every feed-forward sublayer gives.
//!
//! Paper: Fu et al. 2022, "AdapterBias: Parameter-efficient Token-dependent Representation Shift for
//! Adapters in NLP Tasks", arXiv 2205.00305.
//! Seam: sublayer: feed-forward. `y' = y + alpha(y) v` with a linear `alpha` from the width to one
//! number. Starts at a shift of zero.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role, Start, Sublayer, Tap,
    TapSite, TapSlot, kernels,
};
use serde::{Deserialize, Serialize};

/// Configuration of AdapterBias, `kind = "adapter_bias"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterBias {}

impl MethodConfig for AdapterBias {
    const INFO: MethodInfo = MethodInfo {
        kind: "adapter_bias",
        name: "AdapterBias",
        paper: "Fu et al. 2022, arXiv 2205.00305",
        seam: "sublayer: feed-forward",
        formula: "2 d + 1 per layer",
        start: Start::Identity,
        mergeable: false,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        vec![Self {}]
    }
}

/// The sublayers it sits on.
fn places(geometry: &Geometry) -> impl Iterator<Item = &TapSite> {
    let taps = geometry.taps.iter();
    taps.filter(|tap| tap.role == Role::AfterMlp)
}

impl Method for AdapterBias {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        match places(geometry).next() {
            Some(_) => Ok(()),
            None => Err(CoreError::NoSeam {
                method: "AdapterBias".into(),
                needs: "at least one feed-forward sublayer".into(),
            }),
        }
    }

    fn tap(&self, _layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        (role == Role::AfterMlp).then(|| {
            TapSlot::new(Shift {
                vector: Param::from_tensor(init.zeros([d])),
                alpha: Param::from_tensor(init.kaiming_uniform([d, 1], d)),
                alpha_bias: Param::from_tensor(init.kaiming_uniform([1], d)),
            })
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        places(geometry).count() * (2 * geometry.width + 1)
    }
}

/// The token-dependent shift of one sublayer.
#[derive(Module, Debug)]
pub struct Shift {
    /// `v`, `[d]`
    vector: Param<Tensor<1>>,
    /// `[d, 1]`
    alpha: Param<Tensor<2>>,
    /// `[1]`
    alpha_bias: Param<Tensor<1>>,
}

impl Tap for Shift {
    fn forward(&self, sublayer: Sublayer<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        let alpha = kernels::linear(y.clone(), self.alpha.val(), Some(self.alpha_bias.val()));
        y + alpha * self.vector.val().unsqueeze()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{TensorData, Tolerance};
    use peft_core::contract::random;

    use super::*;

    peft_core::contract_tests!(AdapterBias);

    #[test]
    fn every_token_is_shifted_along_the_vector_by_its_own_weight() {
        let device = peft_core::device("cpu").unwrap();
        let values = |data: &[f32]| TensorData::from(data);
        let shift = Shift {
            vector: Param::from_data(values(&[10.0, 20.0]), &device),
            alpha: Param::from_tensor(Tensor::from_data([[1.0f32], [-1.0]], &device)),
            alpha_bias: Param::from_data(values(&[0.5]), &device),
        };
        let sublayer = Sublayer {
            residual: random([1, 2, 2], &device),
            output: Tensor::from_data([[[3.0f32, 1.0], [0.0, 0.0]]], &device),
            norm: None,
        };
        let found = shift.forward(sublayer, &Pass::new()).into_data();
        // The weights are 3 - 1 + 0.5 and 0.5.
        let expected = TensorData::from([[[28.0f32, 51.0], [5.0, 10.0]]]);
        found.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
    }
}
