//! Top layers: the highest transformer layers are trained whole, those below stay frozen.
//!
//! Seam: none. A baseline of Houlsby et al. 2019 (arXiv 1902.00751) and, as "FT-top2", of Li and
//! Liang 2021 (arXiv 2101.00190). What stands above the layers (a last norm, a pooler) stays frozen.

use peft_core::{BaseParam, CoreError, Geometry, Method, MethodConfig, MethodInfo, Start};
use serde::{Deserialize, Serialize};

/// Configuration of top-layer fine-tuning, `kind = "top_layers"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopLayers {
    /// How many layers are trained, counted from the highest down.
    pub layers: usize,
}

impl Default for TopLayers {
    fn default() -> Self {
        Self { layers: 2 }
    }
}

impl MethodConfig for TopLayers {
    const INFO: MethodInfo = MethodInfo {
        kind: "top_layers",
        name: "Top layers",
        paper: "baseline",
        seam: "none: unfreezes the highest layers",
        formula: "the k highest layers",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("layers"),
    };

    fn examples() -> Vec<Self> {
        vec![Self { layers: 1 }, Self { layers: 2 }]
    }
}

impl Method for TopLayers {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if (1..=geometry.layers).contains(&self.layers) {
            return Ok(());
        }
        let expected = format!("from 1 to the model's {} layers", geometry.layers);
        Err(CoreError::bad_value("layers", self.layers, &expected))
    }

    fn trains(&self, param: &BaseParam) -> bool {
        param.layers_above.is_some_and(|above| above < self.layers)
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.count(|param| self.trains(param))
    }

    fn size(&self) -> Option<u64> {
        Some(self.layers as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::{Host, Init, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(TopLayers);

    #[test]
    fn the_highest_layer_is_the_first_to_be_trained() {
        let toy = Toy::build(&mut Init::new(0, &burn::tensor::Device::flex())).geometry();
        let one = TopLayers { layers: 1 };
        let trained = toy.params.iter().filter(|param| one.trains(param));
        assert!(trained.clone().count() > 0);
        assert!(trained.into_iter().all(|param| param.layer == Some(1)));
    }

    #[test]
    fn more_layers_than_the_model_has_are_refused() {
        let toy = Toy::build(&mut Init::new(0, &burn::tensor::Device::flex())).geometry();
        for layers in [0, 3] {
            let error = TopLayers { layers }.check(&toy).unwrap_err().to_string();
            assert!(error.contains("the model's 2 layers"), "{error}");
        }
    }
}
