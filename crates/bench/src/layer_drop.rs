//! Training in which some layers go without what the method put into them, or without some of the
//! values it adds there.

use std::borrow::Cow;
use std::collections::BTreeSet;

use models::Model;
use peft_core::Adapted;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::study::TrainConfig;

/// AdapterDrop (Rücklé et al. 2021, arXiv 2010.11918): the lowest layers go without the method, so
/// that training needs no backward pass there and inference no adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdapterDrop {
    /// Always the same layers, in training and evaluation.
    Specialized {
        /// How many.
        layers: usize,
    },
    /// In training another number each pass, from none to all of these.
    Robust {
        /// The most.
        layers: usize,
        /// How many in evaluation.
        #[serde(default)]
        evaluate: usize,
    },
}

impl AdapterDrop {
    fn most(self) -> (&'static str, usize) {
        match self {
            AdapterDrop::Specialized { layers } => ("layers", layers),
            AdapterDrop::Robust { layers, evaluate } if evaluate > layers => ("evaluate", evaluate),
            AdapterDrop::Robust { layers, .. } => ("layers", layers),
        }
    }

    /// How many of the lowest layers are left out where the model is scored.
    pub fn evaluated(self) -> usize {
        match self {
            AdapterDrop::Specialized { layers } => layers,
            AdapterDrop::Robust { evaluate, .. } => evaluate,
        }
    }
}

/// Whether the settings make sense on any model.
///
/// # Errors
/// Names the key, what was found and what is expected.
pub fn check(config: &TrainConfig) -> Result<(), String> {
    let probabilities = [
        ("stochastic_depth", config.stochastic_depth),
        ("adapter_dropout", config.adapter_dropout),
    ];
    for (key, found) in probabilities {
        if let Some(found) = found
            && !(0.0..1.0).contains(&found)
        {
            return Err(format!(
                "`train.{key}` is {found}, expected a probability from 0 to below 1"
            ));
        }
    }
    match config.adapter_drop.map(AdapterDrop::most) {
        Some((key, 0)) => Err(format!(
            "`train.adapter_drop.{key}` is 0, expected at least 1; remove `adapter_drop` to use \
             every layer"
        )),
        _ => Ok(()),
    }
}

/// Whether the settings make sense on a model of so many layers.
///
/// # Errors
/// As [`check`].
pub fn check_on(config: &TrainConfig, layers: usize) -> Result<(), String> {
    match config.adapter_drop.map(AdapterDrop::most) {
        Some((key, found)) if found >= layers => Err(format!(
            "`train.adapter_drop.{key}` is {found}, expected less than the model's {layers} layers: \
             one must be left to the method"
        )),
        _ => Ok(()),
    }
}

/// The model as it is scored under these settings.
pub fn as_evaluated<'a>(
    model: &'a Adapted<Model>,
    config: &TrainConfig,
) -> Cow<'a, Adapted<Model>> {
    without_lowest(model, config.adapter_drop.map_or(0, AdapterDrop::evaluated))
}

/// The model without what its method put into so many of its lowest layers.
pub fn without_lowest(model: &Adapted<Model>, layers: usize) -> Cow<'_, Adapted<Model>> {
    match layers {
        0 => Cow::Borrowed(model),
        lowest => Cow::Owned(model.without_layers(&(0..lowest).collect())),
    }
}

/// What of the method takes no part in one pass of training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drops {
    /// Layers that go without it.
    pub layers: BTreeSet<usize>,
    /// How likely each value that it adds in the others is dropped.
    pub dropout: f64,
}

impl Drops {
    /// The model as it is in this pass; parameters are shared with the whole one.
    pub fn applied<'a>(&self, model: &'a Adapted<Model>) -> Cow<'a, Adapted<Model>> {
        let mut model = Cow::Borrowed(model);
        if !self.layers.is_empty() {
            model = Cow::Owned(model.without_layers(&self.layers));
        }
        if self.dropout > 0.0 {
            model = Cow::Owned(model.with_dropout(self.dropout));
        }
        model
    }
}

/// Draws what takes no part in each pass.
pub struct LayerDrop {
    layers: usize,
    adapter_drop: Option<AdapterDrop>,
    /// How likely each layer is left out.
    probability: f64,
    /// How likely each value that the method adds is.
    dropout: f64,
    rng: ChaCha8Rng,
}

impl LayerDrop {
    /// The draws of a run on a model of so many layers; the seed decides them.
    pub fn new(config: &TrainConfig, layers: usize, seed: u64) -> Self {
        Self {
            layers,
            adapter_drop: config.adapter_drop,
            probability: config.stochastic_depth.unwrap_or(0.0),
            dropout: config.adapter_dropout.unwrap_or(0.0),
            rng: crate::train::rng(seed, "layer drop"),
        }
    }

    /// What takes no part in the next pass.
    pub fn draw(&mut self) -> Drops {
        Drops {
            layers: self.draw_layers(),
            dropout: self.dropout,
        }
    }

    fn draw_layers(&mut self) -> BTreeSet<usize> {
        let lowest = match self.adapter_drop {
            None => 0,
            Some(AdapterDrop::Specialized { layers }) => layers,
            Some(AdapterDrop::Robust { layers, .. }) => self.rng.random_range(0..=layers),
        };
        let mut left_out: BTreeSet<usize> = (0..lowest).collect();
        if self.probability > 0.0 {
            let drawn = (0..self.layers).filter(|_| self.rng.random_bool(self.probability));
            left_out.extend(drawn);
        }
        left_out
    }
}

#[cfg(test)]
mod tests;
