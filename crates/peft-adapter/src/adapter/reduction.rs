//! How wide a bottleneck is, as a share of the model's width.

use std::collections::BTreeMap;

use peft_core::CoreError;
use serde::{Deserialize, Serialize};

/// The model's width over the bottleneck's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number, or a table with one for every layer"
)]
pub enum ReductionFactor {
    /// The same in every layer.
    Whole(usize),
    /// Likewise; the width is rounded down.
    Fraction(f64),
    /// By layer, from 0, and `default` for the others.
    Layers(BTreeMap<String, f64>),
}

impl ReductionFactor {
    pub(super) fn at(&self, layer: usize) -> Option<f64> {
        match self {
            Self::Whole(factor) => Some(*factor as f64),
            Self::Fraction(factor) => Some(*factor),
            Self::Layers(table) => {
                let own = table.get(&layer.to_string());
                own.or_else(|| table.get("default")).copied()
            }
        }
    }

    pub(super) fn check(&self, layers: usize) -> Result<(), CoreError> {
        let Self::Layers(table) = self else {
            return Ok(());
        };
        let fits = |key: &str| key == "default" || key.parse().is_ok_and(|l: usize| l < layers);
        match table.keys().find(|key| !fits(key)) {
            None => Ok(()),
            Some(key) => {
                let expected = format!("`default` or a layer from 0 to below {layers}");
                let name = "a key of reduction_factor";
                Err(CoreError::bad_value(name, key, &expected))
            }
        }
    }
}
