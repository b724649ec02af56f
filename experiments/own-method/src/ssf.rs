//! SSF: a trained factor and a trained shift on every output of a linear layer.
//!
//! Paper: Lian et al. 2022, "Scaling & Shifting Your Features: A New Baseline for Efficient Model
//! Tuning", arXiv 2210.08823.
//! Seam: linear layers. `y = (x W + b) * scale + shift`. Starts at factors of one and shifts of zero,
//! so that the model is the base's until training moves them.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Dense, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj, Projection,
    Site, Start, Targets,
};
use serde::{Deserialize, Serialize};

/// Configuration of SSF, `kind = "ssf"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ssf {
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl MethodConfig for Ssf {
    const INFO: MethodInfo = MethodInfo {
        kind: "ssf",
        name: "SSF",
        paper: "Lian et al. 2022, arXiv 2210.08823",
        seam: "linear layers",
        formula: "2 out per target",
        start: Start::Identity,
        mergeable: true,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        let targets = Targets::all_linear();
        vec![Self { targets }]
    }
}

impl Method for Ssf {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(SsfLinear {
            scale: Param::from_tensor(init.full([site.d_out], 1.0)),
            shift: Param::from_tensor(init.zeros([site.d_out])),
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = geometry.sites.iter();
        let targets = sites.filter(|site| self.targets.contains(site));
        targets.map(|site| 2 * site.d_out).sum()
    }
}

/// A linear layer whose outputs are scaled and shifted.
#[derive(Module, Debug)]
pub struct SsfLinear {
    base: Proj,
    /// `[d_out]`
    scale: Param<Tensor<1>>,
    /// `[d_out]`
    shift: Param<Tensor<1>>,
}

impl Projection for SsfLinear {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x, pass);
        y * self.scale.val().unsqueeze() + self.shift.val().unsqueeze()
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) * self.scale.val().unsqueeze()
    }

    fn bias(&self) -> Option<Tensor<1>> {
        let shift = self.shift.val();
        Some(match self.base.bias() {
            Some(bias) => bias * self.scale.val() + shift,
            None => shift,
        })
    }

    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Some(Dense::new(self.weight(pass), self.bias()))
    }

    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }

    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{TensorData, Tolerance};

    use super::*;

    // The whole contract, on two backends: starts where `INFO.start` says, trains what it declares
    // and as many values as its formula says, merges without changing the output, is restored from
    // its own tensors, learns, and refuses targets and keys that do not exist.
    peft_core::contract_tests!(Ssf);

    #[test]
    fn outputs_are_scaled_and_shifted_after_the_bias_of_the_base() {
        let device = peft_core::device("cpu").unwrap();
        let row = |values: [f32; 2]| Tensor::<1>::from_data(values, &device);
        let weight = Tensor::from_data([[1.0f32, 0.0], [0.0, 2.0]], &device);
        let layer = SsfLinear {
            base: Proj::new(Dense::new(weight, Some(row([1.0, 1.0])))),
            scale: Param::from_tensor(row([10.0, 100.0])),
            shift: Param::from_tensor(row([0.5, -0.5])),
        };
        let x = Tensor::from_data([[[3.0f32, 4.0]]], &device);
        let found = layer.forward(x, &Pass::new()).into_data();
        let expected = TensorData::from([[[40.5f32, 899.5]]]);
        found.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-4));
    }
}
