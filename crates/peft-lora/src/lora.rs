//! LoRA: a trained low-rank product beside a frozen linear layer.
//!
//! Paper: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
//! Seam: linear layers. `y = x W + b + scaling * dropout(x) A B` with `scaling = alpha / rank`.
//! Starts as HF PEFT does: `A` Kaiming-uniform, `B` zero.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Dense, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj, Projection,
    Site, Start, Targets, check, kernels,
};
use serde::{Deserialize, Serialize};

/// Configuration of LoRA, `kind = "lora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of `A` while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for Lora {
    const INFO: MethodInfo = MethodInfo {
        kind: "lora",
        name: "LoRA",
        paper: "Hu et al. 2021, arXiv 2106.09685",
        seam: "linear layers",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Lora {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Lora {
                rank: 3,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }
}

impl Method for Lora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        if !self.alpha.is_finite() {
            return Err(CoreError::bad_value("alpha", self.alpha, "a finite number"));
        }
        check::dropout(self.dropout)?;
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(LoraLinear {
            a: Param::from_tensor(init.kaiming_uniform([site.d_in, self.rank], site.d_in)),
            b: Param::from_tensor(init.zeros([self.rank, site.d_out])),
            dropout: DropoutConfig::new(self.dropout).init(),
            scaling: self.alpha / self.rank as f64,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let targets = geometry
            .sites
            .iter()
            .filter(|site| self.targets.contains(site));
        targets
            .map(|site| self.rank * (site.d_in + site.d_out))
            .sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }
}

/// A linear layer with a low-rank update.
#[derive(Module, Debug)]
pub struct LoraLinear {
    base: Proj,
    /// `[d_in, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b: Param<Tensor<2>>,
    dropout: Dropout,
    scaling: f64,
}

impl Projection for LoraLinear {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        // The scaling goes onto the narrow product: rank values a token in place of d_out.
        let h = kernels::linear(self.dropout.forward(x), self.a.val(), None);
        kernels::linear_onto(y, h.mul_scalar(self.scaling), self.b.val())
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) + self.a.val().matmul(self.b.val()).mul_scalar(self.scaling)
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias()
    }

    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Some(Dense::new(self.weight(pass), self.bias()))
    }

    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use peft_core::contract::random;
    use peft_core::site::Role;

    peft_core::contract_tests!(Lora);

    fn layer(lora: &Lora, device: &Device) -> Proj {
        let site = Site {
            layer: 0,
            role: Role::Query,
            path: "query".into(),
            d_in: 6,
            d_out: 5,
        };
        let base = Dense::new(random([6, 5], device), Some(random([5], device)));
        lora.project(&site, Proj::new(base), &mut Init::new(1, device))
    }

    #[test]
    fn the_start_of_a_is_kaiming_uniform_and_b_is_zero() {
        let device = Device::flex();
        let proj = layer(
            &Lora {
                rank: 4,
                ..Lora::default()
            },
            &device,
        );
        let lora: &LoraLinear = proj.downcast_ref().unwrap();
        let a: Vec<f32> = lora.a.val().into_data().try_to_vec().unwrap();
        let bound = 1.0 / 6f32.sqrt();
        assert!(a.iter().all(|v| v.abs() <= bound) && a.iter().any(|v| v.abs() > 0.5 * bound));
        assert!(
            lora.b
                .val()
                .into_data()
                .try_to_vec::<f32>()
                .unwrap()
                .iter()
                .all(|v| *v == 0.0)
        );
    }

    #[test]
    fn the_activation_path_agrees_with_the_composed_weight() {
        let device = Device::flex();
        let proj = layer(
            &Lora {
                rank: 4,
                alpha: 7.0,
                ..Lora::default()
            },
            &device,
        );
        let mut lora = proj.downcast_ref::<LoraLinear>().unwrap().clone();
        lora.b = Param::from_tensor(random([4, 5], &device));
        let x = random([2, 3, 6], &device);
        let pass = Pass::new();
        let composed =
            x.clone().matmul(lora.weight(&pass).unsqueeze()) + lora.bias().unwrap().unsqueeze();
        let difference = (Projection::forward(&lora, x, &pass) - composed)
            .abs()
            .max();
        assert!(difference.into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn dropout_acts_in_training_and_not_in_validation() {
        let device = Device::flex().autodiff();
        let proj = layer(
            &Lora {
                dropout: 0.5,
                ..Lora::default()
            },
            &device,
        );
        let mut lora = proj.downcast_ref::<LoraLinear>().unwrap().clone();
        lora.b = Param::from_tensor(random([8, 5], &device));
        let x = random([2, 3, 6], &device);
        let twice = |lora: &LoraLinear, x: Tensor<3>| {
            let run = || Projection::forward(lora, x.clone(), &Pass::new()).into_data();
            run() == run()
        };
        assert!(!twice(&lora, x.clone()));
        assert!(twice(&lora.valid(), x.without_autodiff()));
    }

    #[test]
    fn a_rank_of_zero_is_refused_by_name() {
        let toy: peft_core::toy::Toy =
            peft_core::contract::ContractHost::build(&mut Init::new(0, &Device::flex()));
        let geometry = peft_core::Host::geometry(&toy);
        let error = Lora {
            rank: 0,
            ..Lora::default()
        }
        .check(&geometry)
        .unwrap_err();
        assert!(error.to_string().contains("`rank` is 0"), "{error}");
    }
}
