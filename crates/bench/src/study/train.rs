//! How a study trains: the settings that every method shares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::OneOrMany;
use crate::adversarial::Adversarial;
use crate::groups::{self, Freeze};
use crate::layer_drop::{self, AdapterDrop};
use crate::schedule::Decay;

/// Training settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Peak learning rates to try; the best on dev is reported.
    pub learning_rate: OneOrMany<f64>,
    /// Passes over the training data.
    pub epochs: usize,
    /// Examples of one forward and backward pass.
    pub batch_size: usize,
    /// Passes whose gradients are summed before the optimizer steps.
    pub accumulation: usize,
    /// Whether layers are computed again in the backward pass, in place of keeping their
    /// activations: less memory for one more forward pass.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub checkpointing: bool,
    /// Whether the completions of a batch are put into one row without padding, in place of a
    /// padded row each. No text sees another: what is learnt is the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub packing: bool,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Share of the steps that the learning rate rises over.
    pub warmup: f64,
    /// Number of those steps, in place of a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
    /// What follows the warm-up.
    pub schedule: Decay,
    /// Largest global gradient norm; 0 for none.
    pub clip: f64,
    /// Evaluations on dev a pass over the data.
    pub evaluations_per_epoch: usize,
    /// Stop after this many evaluations without a better dev score and keep the best; 0 for never.
    pub early_stopping: usize,
    /// Examples of an evaluation batch.
    pub eval_batch_size: usize,
    /// Longest time a trial may take, in minutes; 0 for no limit.
    pub timeout_minutes: f64,
    /// Factors on the learning rate, by names of parameters (see [`groups`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, f64>,
    /// Factor on the learning rate for every layer further down: the head has the full rate, the
    /// highest layer this share of it, the embeddings the smallest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    /// Names of parameters without weight decay: `["biases", "norms"]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_decay: Vec<String>,
    /// Parameters that are frozen in some epochs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<Freeze>,
    /// Small changes of the embedded text that training is to withstand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<Adversarial>,
    /// Lower layers that go without the method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_drop: Option<AdapterDrop>,
    /// How likely each layer goes without the method in a pass of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stochastic_depth: Option<f64>,
    /// How likely each value that the method adds in a layer is left out while training, whatever
    /// the method and beside a dropout of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_dropout: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: OneOrMany::One(1e-3),
            epochs: 3,
            batch_size: 16,
            accumulation: 1,
            checkpointing: false,
            packing: false,
            weight_decay: 0.01,
            warmup: 0.06,
            schedule: Decay::Linear,
            clip: 1.0,
            evaluations_per_epoch: 1,
            early_stopping: 0,
            eval_batch_size: 64,
            timeout_minutes: 0.0,
            warmup_steps: None,
            rates: BTreeMap::new(),
            layer_decay: None,
            no_decay: Vec::new(),
            freeze: Vec::new(),
            adversarial: None,
            adapter_drop: None,
            stochastic_depth: None,
            adapter_dropout: None,
        }
    }
}

impl TrainConfig {
    /// The number of steps, of so many, that the learning rate rises over.
    pub fn warmup_of(&self, steps: usize) -> usize {
        let share = (self.warmup * steps as f64).ceil() as usize;
        self.warmup_steps.unwrap_or(share)
    }

    /// Whether the settings make sense for any model and task.
    pub(super) fn check(&self) -> Result<(), String> {
        let positive = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
            ("evaluations_per_epoch", self.evaluations_per_epoch),
            ("eval_batch_size", self.eval_batch_size),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("`train.{key}` is 0, expected at least 1"));
        }
        self.check_warmup()?;
        groups::check(self)?;
        let alone = [
            ("checkpointing", self.checkpointing),
            ("packing", self.packing),
        ];
        if let Some((key, _)) = alone
            .iter()
            .find(|(_, on)| *on && self.adversarial.is_some())
        {
            return Err(format!(
                "`train.{key}` does not go with `train.adversarial`; leave one of them out"
            ));
        }
        self.adversarial.map_or(Ok(()), |it| it.check())?;
        layer_drop::check(self)?;
        check_rates("train.learning_rate", &self.learning_rate)
    }

    fn check_warmup(&self) -> Result<(), String> {
        let found = self.warmup;
        if !(0.0..1.0).contains(&found) {
            return Err(format!(
                "`train.warmup` is {found}, expected a share from 0 to below 1"
            ));
        }
        if self.warmup_steps.is_some() && found != Self::default().warmup {
            return Err("`train.warmup` and `train.warmup_steps` say the same; remove one".into());
        }
        Ok(())
    }
}

/// Refuses learning rates that are none.
pub(super) fn check_rates(key: &str, rates: &OneOrMany<f64>) -> Result<(), String> {
    let rates = rates.values();
    if rates.is_empty() {
        return Err(format!(
            "`{key}` is an empty list, expected at least one rate"
        ));
    }
    let is_rate = |rate: &f64| *rate > 0.0 && rate.is_finite();
    match rates.iter().find(|rate| !is_rate(rate)) {
        Some(rate) => Err(format!("`{key}` is {rate}, expected a number above 0")),
        None => Ok(()),
    }
}
