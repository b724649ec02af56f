//! LoRA+: LoRA whose projection up learns faster than its projection down.
//!
//! Paper: Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models",
//! arXiv 2402.12354.
//! Seam: linear layers, learning rates. The layers are LoRA's; `B` is trained at
//! `lora_plus_ratio` times the learning rate of `A`. HF PEFT has it as an optimizer over LoRA: its
//! files are LoRA's, and are read as such.

use peft_core::{
    CoreError, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Proj, Site, Start,
    Targets,
};
use serde::{Deserialize, Serialize};

use crate::lora::{Lora, peft};

/// Configuration of LoRA+, `kind = "lora_plus"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraPlus {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of `A` while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
    /// Scaling `alpha / sqrt(rank)`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// The learning rate of `B` over that of `A`.
    pub lora_plus_ratio: f64,
}

impl Default for LoraPlus {
    fn default() -> Self {
        let lora = Lora::default();
        Self {
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: lora.dropout,
            targets: lora.targets,
            rslora: lora.rslora,
            lora_plus_ratio: 16.0,
        }
    }
}

impl LoraPlus {
    /// LoRA with the same layers.
    fn lora(&self) -> Lora {
        Lora {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.clone(),
            rslora: self.rslora,
            ..Lora::default()
        }
    }
}

impl MethodConfig for LoraPlus {
    const INFO: MethodInfo = MethodInfo {
        kind: "lora_plus",
        name: "LoRA+",
        paper: "Hayou et al. 2024, arXiv 2402.12354",
        seam: "linear layers, learning rates",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            LoraPlus {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            LoraPlus {
                rank: 3,
                rslora: true,
                lora_plus_ratio: 4.0,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }
}

impl Method for LoraPlus {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        let ratio = self.lora_plus_ratio;
        if !(ratio > 0.0 && ratio.is_finite()) {
            let expected = "a number above 0";
            return Err(CoreError::bad_value("lora_plus_ratio", ratio, expected));
        }
        // Unlike LoRA's, the targets are linear layers only.
        self.targets.select(&geometry.sites)?;
        self.lora().check(geometry)
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        self.lora().project(site, base, init)
    }

    fn rate_factors(&self) -> Vec<(&'static str, f64)> {
        vec![("/b", self.lora_plus_ratio)]
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.lora().parameters(geometry)
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        Some(peft::write(&self.lora(), geometry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::contract::ContractHost;
    use peft_core::toy::Toy;
    use peft_core::{Host, adapt, trained};

    peft_core::contract_tests!(LoraPlus);

    fn toy() -> (Toy, Init) {
        let mut init = Init::new(0, &burn::tensor::Device::flex().autodiff());
        (Toy::build(&mut init), init)
    }

    #[test]
    fn the_projection_up_has_the_ratio_and_all_else_the_plain_rate() {
        let method = LoraPlus::default();
        let (toy, mut init) = toy();
        let model = adapt(toy, &method, None, &mut init).unwrap();
        let params = trained(&model);
        assert_eq!(params.len(), 2 * 2 * 2);
        for param in params {
            let expected = if param.name.ends_with("/b") {
                16.0
            } else {
                1.0
            };
            assert_eq!(method.rate_factor(&param.name), expected, "{}", param.name);
        }
        assert_eq!(method.rate_factor("classifier.weight"), 1.0);
    }

    #[test]
    fn a_ratio_that_trains_nothing_is_refused_by_name() {
        let method = LoraPlus {
            lora_plus_ratio: 0.0,
            ..LoraPlus::default()
        };
        let error = method.check(&toy().0.geometry()).unwrap_err().to_string();
        assert!(error.contains("`lora_plus_ratio` is 0"), "{error}");
    }
}
