//! LoReFT: low-rank edits of the hidden states behind every layer, at the first and last positions
//! of the text. Of a completion the text is the prompt alone, as in the paper.
//!
//! Paper: Wu et al. 2024, "ReFT: Representation Finetuning for Language Models", arXiv 2404.03592.
//! Seam: whole layers. `h' = h + (h S + b - h R) R^T` with `R` of orthonormal columns; without
//! `orthogonality` it is NoReFT, where `R` is any matrix, and with `subtract_projection` off as well
//! DiReFT, `h' = h + (h S + b) R^T`. AdapterHub's `loreft`, `noreft` and `direft`, whose own
//! configuration of the last loses its `subtract_projection` when it is saved: what its folders say
//! without the key is NoReFT, for AdapterHub as for us.

use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Role, SharedSlot,
    Start, TapSite, TapSlot, check,
};
use serde::{Deserialize, Serialize};

use crate::reft::{Bases, Reft, Unit, UnitShape};

mod hub;

/// Configuration of LoReFT, `kind = "loreft"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoReft {
    /// Rank of an edit.
    pub r: usize,
    /// How many of the text's first positions are edited.
    pub prefix_positions: usize,
    /// How many of its last positions are edited.
    pub suffix_positions: usize,
    /// Whether the projection has orthonormal columns (LoReFT) or is free (NoReFT).
    pub orthogonality: bool,
    /// Whether an edit takes off what the projection finds in the state (not in DiReFT).
    #[serde(skip_serializing_if = "is_on")]
    pub subtract_projection: bool,
    /// Whether first and last positions share an edit.
    pub tied_weights: bool,
    /// Dropout on edited states while training.
    pub dropout: f64,
    /// The layers, from 0; all of them where none are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

fn is_on(flag: &bool) -> bool {
    *flag
}

impl Default for LoReft {
    fn default() -> Self {
        Self {
            r: 1,
            prefix_positions: 3,
            suffix_positions: 0,
            orthogonality: true,
            subtract_projection: true,
            tied_weights: false,
            dropout: 0.05,
            layers: None,
        }
    }
}

impl LoReft {
    /// Whether the edit of first positions, and that of last ones, is ever applied.
    fn used(&self) -> Vec<bool> {
        let (first, last) = (self.prefix_positions > 0, self.suffix_positions > 0);
        match self.tied_weights {
            true => vec![first || last],
            false => vec![first, last],
        }
    }

    fn edits(&self, layer: usize) -> bool {
        let layers = self.layers.as_ref();
        layers.is_none_or(|layers| layers.contains(&layer))
    }

    /// The layers that are edited, in order.
    fn places<'a>(&self, geometry: &'a Geometry) -> impl Iterator<Item = &'a TapSite> {
        let taps = geometry.taps.iter();
        taps.filter(|tap| tap.role == Role::AfterLayer && self.edits(tap.layer))
    }

    /// Where a layer's first basis stands among those of the whole model.
    fn first_basis(&self, layer: usize) -> usize {
        let below = (0..layer).filter(|layer| self.edits(*layer)).count();
        below * self.used().len()
    }
}

impl MethodConfig for LoReft {
    const INFO: MethodInfo = MethodInfo {
        kind: "loreft",
        name: "LoReFT",
        paper: "Wu et al. 2024, arXiv 2404.03592",
        seam: "whole layers",
        formula: "u (2 d r + r) per layer",
        start: Start::Elsewhere("the edits start at random, as in the paper's code"),
        mergeable: false,
        size_key: Some("r"),
    };

    // It edits the prompt alone, and its subspaces start anywhere.
    const REVISION: u32 = 2;

    fn examples() -> Vec<Self> {
        let exact = Self {
            dropout: 0.0,
            ..Self::default()
        };
        vec![
            exact.clone(),
            Self {
                r: 2,
                suffix_positions: 2,
                ..exact.clone()
            },
            Self {
                r: 3,
                prefix_positions: 2,
                suffix_positions: 1,
                tied_weights: true,
                layers: Some(vec![1]),
                ..exact.clone()
            },
            Self {
                orthogonality: false,
                r: 2,
                ..exact.clone()
            },
            Self {
                orthogonality: false,
                subtract_projection: false,
                r: 2,
                ..exact
            },
        ]
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        hub::read(fields, geometry)
    }
}

impl Method for LoReft {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::dropout(self.dropout)?;
        if self.r == 0 || self.r > geometry.width {
            let expected = format!("from 1 to the model's width {}", geometry.width);
            return Err(CoreError::bad_value("r", self.r, &expected));
        }
        if !self.used().contains(&true) {
            let expected = "above 0, or `suffix_positions` above 0";
            return Err(CoreError::bad_value("prefix_positions", 0, expected));
        }
        let layers = self.layers.as_ref().into_iter().flatten();
        if let Some(layer) = layers.clone().find(|layer| **layer >= geometry.layers) {
            let expected = format!("layers from 0 to below {}", geometry.layers);
            return Err(CoreError::bad_value("layers", layer, &expected));
        }
        match self.places(geometry).next() {
            Some(_) => Ok(()),
            None => Err(CoreError::NoSeam {
                method: "LoReFT".into(),
                needs: "at least one layer whose output it may edit".into(),
            }),
        }
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let count = self.places(geometry).count() * self.used().len();
        let (d, r) = (geometry.width, self.r);
        let bases = || Bases::new(count, d, r, init);
        self.orthogonality.then(bases).map(SharedSlot::new)
    }

    fn tap(&self, layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        if role != Role::AfterLayer || !self.edits(layer) {
            return None;
        }
        let shape = UnitShape { d, r: self.r };
        let first = self.first_basis(layer);
        let unit = |(index, used): (usize, bool)| {
            let basis = self.orthogonality.then_some(first + index);
            let unit = Unit::new(shape, basis, init)
                .with_dropout(self.dropout)
                .subtracting(self.subtract_projection);
            if used { unit } else { unit.frozen() }
        };
        let units = self.used().into_iter().enumerate().map(unit).collect();
        let positions = [self.prefix_positions, self.suffix_positions];
        Some(TapSlot::new(Reft::new(units, positions)))
    }

    fn needs_own_rows(&self) -> bool {
        true
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let units = self.used().into_iter().filter(|used| *used).count();
        let each = 2 * geometry.width * self.r + self.r;
        self.places(geometry).count() * units * each
    }

    fn size(&self) -> Option<u64> {
        Some(self.r as u64)
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        Some(hub::write(self, geometry, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::{Host, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(LoReft);

    fn toy() -> Geometry {
        Toy::build(&mut Init::new(0, &burn::tensor::Device::flex())).geometry()
    }

    #[test]
    fn edits_that_are_never_applied_are_not_trained() {
        let first_only = LoReft::default();
        let both = LoReft {
            suffix_positions: 1,
            ..LoReft::default()
        };
        assert_eq!(first_only.parameters(&toy()), 2 * (2 * 8 + 1));
        assert_eq!(both.parameters(&toy()), 2 * 2 * (2 * 8 + 1));
    }

    #[test]
    fn positions_layers_and_ranks_that_make_no_sense_are_refused() {
        let refused = |json: serde_json::Value| {
            let method: LoReft = serde_json::from_value(json).unwrap();
            method.check(&toy()).unwrap_err().to_string()
        };
        for (config, said) in [
            (
                serde_json::json!({"prefix_positions": 0}),
                "`prefix_positions`",
            ),
            (
                serde_json::json!({"layers": [2]}),
                "layers from 0 to below 2",
            ),
            (serde_json::json!({"layers": []}), "LoReFT needs"),
            (serde_json::json!({"r": 9}), "from 1 to the model's width 8"),
        ] {
            let error = refused(config);
            assert!(error.contains(said), "{error}");
        }
    }
}
