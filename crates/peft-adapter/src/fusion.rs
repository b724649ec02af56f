//! AdapterFusion: attention over the outputs of several trained adapters, in every sublayer.
//!
//! Paper: Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer
//! Learning", arXiv 2005.00247.
//! Seam: sublayers. `y' = y + V sum_i p_i u_i` with what each adapter adds, `u_i`, and
//! `p = softmax_i(Q s . K u_i)`, where `s` is the residual sum, normalised in post-norm models. The
//! adapters are trained one by one first and are frozen then, `adapters = ["DIR", ...]`; without
//! folders, `parts = [...]`, they are trained along with the fusion.

mod hub;
mod layer;

use peft_core::compose::{Joint, Part, Room, Seam, seated};
use peft_core::{
    Composition, CoreError, Fields, Foreign, Geometry, Init, MethodInfo, Start, TapSlot, check,
};
use serde::{Deserialize, Serialize};

use layer::FusionTap;

/// Configuration of AdapterFusion, `kind = "fusion"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fusion {
    /// The adapters; those with a folder (`{ adapter = "DIR" }`) are frozen.
    pub parts: Vec<Part>,
    /// Folders of trained adapters, in short: each is a part.
    #[serde(skip_serializing)]
    pub adapters: Vec<String>,
    /// Whether there is a query matrix.
    pub query: bool,
    /// Whether there is a key matrix.
    pub key: bool,
    /// Whether there is a value matrix; without one the fusion is AdapterHub's static one.
    pub value: bool,
    /// Whether the query is the sublayer's output by itself, and not the residual sum.
    pub query_before_ln: bool,
    /// Whether the value matrix starts near the identity.
    pub value_initialized: bool,
    /// Whether a loss holds the value matrix near the identity.
    pub regularization: bool,
    /// Dropout on the attention scores while training. Where AdapterHub's `dropout_prob` is null (or
    /// 0), it takes the model's `attention_probs_dropout_prob`, which is no part of the adapter and is
    /// not read: give it here to train on as it would.
    pub dropout: f64,
}

impl Default for Fusion {
    fn default() -> Self {
        Self {
            parts: Vec::new(),
            adapters: Vec::new(),
            query: true,
            key: true,
            value: true,
            query_before_ln: false,
            value_initialized: true,
            regularization: true,
            dropout: 0.0,
        }
    }
}

impl Fusion {
    /// Parameters in a sublayer of this width.
    fn each(&self, d: usize) -> usize {
        let count = |has: bool, size: usize| usize::from(has) * size;
        count(self.query, d * d + d) + count(self.key, d * d + d) + count(self.value, d * d)
    }
}

impl Composition for Fusion {
    const INFO: MethodInfo = MethodInfo {
        kind: "fusion",
        name: "AdapterFusion",
        paper: "Pfeiffer et al. 2021, arXiv 2005.00247",
        seam: "sublayers: those of its parts; auxiliary loss",
        formula: "3 d^2 + 2 d per sublayer, and the parts that are not frozen",
        start: Start::Near(0.1),
        mergeable: false,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        let (pfeiffer, houlsby, parallel) = crate::examples::bottlenecks();
        vec![
            Self {
                parts: vec![Part::of(pfeiffer.clone()), Part::of(pfeiffer)],
                ..Self::default()
            },
            Self {
                parts: vec![
                    Part::of(houlsby),
                    Part::of(parallel),
                    Part::of(crate::examples::compacter()).frozen(),
                ],
                query_before_ln: true,
                value_initialized: false,
                regularization: false,
                ..Self::default()
            },
        ]
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn parts_mut(&mut self) -> &mut Vec<Part> {
        &mut self.parts
    }

    fn spell_out(&mut self) {
        let folders = std::mem::take(&mut self.adapters);
        self.parts
            .extend(folders.into_iter().map(Part::from_folder));
    }

    fn room(&self, seam: Seam) -> Room {
        match seam {
            Seam::Sublayer => Room::Many,
            _ => Room::Nobody,
        }
    }

    fn joint(&self) -> Joint {
        // Of sublayers, which are all it has, it joins what is there itself.
        Joint::InTurn
    }

    fn join_taps(&self, taps: Vec<Option<TapSlot>>, width: usize, init: &mut Init) -> TapSlot {
        TapSlot::new(FusionTap::new(self, taps, width, init))
    }

    fn check_own(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        check::dropout(self.dropout)?;
        if self.each(1) == 0 {
            let expected = "at least one of `query`, `key` and `value`";
            return Err(CoreError::bad_value("query", false, expected));
        }
        match self.regularization && !self.value {
            false => Ok(()),
            true => {
                let expected = "off where `value` is: it holds the value matrix";
                Err(CoreError::bad_value("regularization", true, expected))
            }
        }
    }

    fn own_parameters(&self, geometry: &Geometry) -> usize {
        seated(&self.parts, geometry).len() * self.each(geometry.width)
    }

    fn adapter_hub_block(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        hub::write(self, geometry, name)
    }

    fn from_adapter_hub_block(fields: &mut Fields) -> Result<Option<Self>, CoreError> {
        hub::read(fields)
    }
}

#[cfg(test)]
mod tests;
