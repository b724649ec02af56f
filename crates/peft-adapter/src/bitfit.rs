//! BitFit: the biases of the base are trained and nothing else.
//!
//! Paper: Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for
//! Transformer-based Masked Language-models", arXiv 2106.10199.
//! Seam: none. The paper also trains only some biases (those of queries and of the first
//! feed-forward layer); `targets` names such a part.

use peft_core::{BaseParam, CoreError, Geometry, Method, MethodConfig, MethodInfo, Start, Targets};
use serde::{Deserialize, Serialize};

/// Configuration of BitFit, `kind = "bitfit"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BitFit {
    /// The linear layers whose biases are trained; every bias of the body, those of norms too,
    /// where none are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
}

impl MethodConfig for BitFit {
    const INFO: MethodInfo = MethodInfo {
        kind: "bitfit",
        name: "BitFit",
        paper: "Ben Zaken et al. 2021, arXiv 2106.10199",
        seam: "none: unfreezes biases",
        formula: "the biases",
        start: Start::Identity,
        mergeable: true,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        let targets = Some(Targets::Many(vec!["up".into(), "output".into()]));
        vec![Self::default(), Self { targets }]
    }
}

impl Method for BitFit {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if let Some(targets) = &self.targets {
            targets.select(&geometry.sites)?;
        }
        match self.parameters(geometry) {
            0 => Err(CoreError::NoSeam {
                method: "BitFit".into(),
                needs: "layers with biases".into(),
            }),
            _ => Ok(()),
        }
    }

    fn trains(&self, param: &BaseParam) -> bool {
        let Some(layer) = param.name.strip_suffix(".bias") else {
            return false;
        };
        match &self.targets {
            None => !param.is_task_head(),
            Some(targets) => targets.contains_path(layer, param.role),
        }
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.count(|param| self.trains(param))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::{Host, Init, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(BitFit);

    fn toy() -> Geometry {
        Toy::build(&mut Init::new(0, &burn::tensor::Device::flex())).geometry()
    }

    #[test]
    fn every_bias_counts_or_those_of_the_named_layers() {
        // Two layers of six linear layers (five of width 8, one of 16) and two norms.
        assert_eq!(
            BitFit::default().parameters(&toy()),
            2 * (5 * 8 + 16 + 2 * 8)
        );
        let targets = Some(Targets::Many(vec!["query".into(), "up".into()]));
        assert_eq!(BitFit { targets }.parameters(&toy()), 2 * (8 + 16));
    }

    #[test]
    fn a_target_that_is_no_layer_is_named() {
        let targets = Some(Targets::One("qury".into()));
        let error = BitFit { targets }.check(&toy()).unwrap_err().to_string();
        assert!(error.contains("`qury`"), "{error}");
    }

    #[test]
    fn a_model_without_biases_is_refused() {
        let mut geometry = toy();
        geometry.params.retain(|param| !param.is_bias());
        let error = BitFit::default().check(&geometry).unwrap_err().to_string();
        assert!(error.contains("layers with biases"), "{error}");
    }
}
