//! Groups of trained parameters: their learning rates, their weight decay, when they are frozen.
//!
//! A setting names parameters by one of [`KEYWORDS`], or by a run of whole components of their
//! names: `ln_1`, `h.0`, `c_attn/b`. Settings are those of a whole study: what they name need not
//! train under every method.

mod names;

use std::collections::HashSet;

use anyhow::{Result, bail};
use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::{ParamGroup, ParamId};
use burn::optim::ModuleOptimizer;
use models::Model;
use peft_core::{Adapted, Method, trained};
use serde::{Deserialize, Serialize};

use crate::adamw::AdamW;
use crate::study::TrainConfig;

pub use names::{KEYWORDS, check_used, has_names};
use names::{Params, factor};

/// Parameters that stay as they are for some epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// Which parameters.
    pub params: Vec<String>,
    /// The first epoch in which they are frozen, counted from 0.
    #[serde(default)]
    pub from_epoch: usize,
    /// The epoch from which they are trained again; never where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_epoch: Option<usize>,
}

impl Freeze {
    fn covers(&self, epoch: usize) -> bool {
        epoch >= self.from_epoch && self.until_epoch.is_none_or(|until| epoch < until)
    }
}

/// Refuses settings that make no sense for any model.
///
/// # Errors
/// Names the key, its value and what is expected.
pub fn check(train: &TrainConfig) -> Result<(), String> {
    let is_factor = |rate: f64| rate > 0.0 && rate.is_finite();
    if let Some((name, rate)) = train.rates.iter().find(|(_, rate)| !is_factor(**rate)) {
        return Err(format!(
            "`train.rates` has {rate} for `{name}`, expected a factor above 0; `train.freeze` \
             keeps parameters as they are"
        ));
    }
    if let Some(decay) = train.layer_decay.filter(|d| !(*d > 0.0 && *d <= 1.0)) {
        return Err(format!(
            "`train.layer_decay` is {decay}, expected a number above 0 and at most 1"
        ));
    }
    for freeze in &train.freeze {
        if freeze.params.is_empty() {
            return Err("`train.freeze` has no `params`, expected names of parameters".into());
        }
        if let Some(until) = freeze
            .until_epoch
            .filter(|until| *until <= freeze.from_epoch)
        {
            let from = freeze.from_epoch;
            return Err(format!(
                "`until_epoch` of `train.freeze` is {until}, expected more than `from_epoch`, {from}"
            ));
        }
    }
    Ok(())
}

/// The groups of one model's trained parameters.
#[derive(Clone)]
pub struct Groups {
    weight_decay: f64,
    /// Parameters without weight decay.
    undecayed: HashSet<ParamId>,
    /// Factors on the learning rate other than 1, with what they hold for.
    factors: Vec<(f64, ParamGroup)>,
    /// What is frozen when.
    frozen: Vec<(Freeze, Vec<ParamId>)>,
}

impl Groups {
    /// One group: every parameter at the same rate, with the same weight decay.
    pub fn one(weight_decay: f64) -> Self {
        Self {
            weight_decay,
            undecayed: HashSet::new(),
            factors: Vec::new(),
            frozen: Vec::new(),
        }
    }

    /// One group but for the factors a method sets itself.
    pub fn of_method(model: &Adapted<Model>, method: &dyn Method, weight_decay: f64) -> Self {
        let params = trained(model);
        let factors = params.iter().map(|p| (p.id, method.rate_factor(&p.name)));
        Self {
            factors: by_factor(factors),
            ..Self::one(weight_decay)
        }
    }

    /// The groups that a study asks for.
    ///
    /// # Errors
    /// If a name matches no parameter of the model, several factors hold for one, or an epoch has
    /// nothing to train.
    pub fn new(model: &Adapted<Model>, method: &dyn Method, config: &TrainConfig) -> Result<Self> {
        let params = Params::of(model);
        let mut factors = Vec::new();
        for param in &params.trained {
            let own = method.rate_factor(&param.name);
            let named = factor(param, &config.rates)?;
            let depth = config
                .layer_decay
                .unwrap_or(1.0)
                .powi(param.distance as i32);
            factors.push((param.id, own * named * depth));
        }
        for name in config.rates.keys() {
            params.select("train.rates", name)?;
        }
        let mut frozen = Vec::new();
        for freeze in &config.freeze {
            let ids = params.union("train.freeze", &freeze.params)?;
            frozen.push((freeze.clone(), ids));
        }
        let undecayed = params.union("train.no_decay", &config.no_decay)?;
        let groups = Self {
            weight_decay: config.weight_decay,
            undecayed: undecayed.into_iter().collect(),
            factors: by_factor(factors.into_iter()),
            frozen,
        };
        let count = params.trained.len();
        match (0..config.epochs).find(|epoch| groups.frozen_in(*epoch).len() == count) {
            Some(epoch) => bail!(
                "`train.freeze` leaves nothing to train in epoch {epoch}; lower `until_epoch` or \
                 name fewer `params`"
            ),
            None => Ok(groups),
        }
    }

    /// An optimizer that has not taken a step.
    pub fn optimizer(&self) -> ModuleOptimizer {
        let optimizer = ModuleOptimizer::from(AdamW::new(self.weight_decay));
        with_group(optimizer, self.undecayed.iter().copied().collect(), 0.0)
    }

    /// The optimizer without what it remembers of these parameters.
    pub fn restarted(&self, optimizer: ModuleOptimizer, ids: &[ParamId]) -> ModuleOptimizer {
        let (undecayed, decayed) = ids.iter().partition(|id| self.undecayed.contains(*id));
        // A group of their own is how Burn forgets the state of single parameters.
        let optimizer = with_group(optimizer, decayed, self.weight_decay);
        with_group(optimizer, undecayed, 0.0)
    }

    /// The rate of every parameter when the schedule's is `rate`.
    pub fn rates(&self, rate: f64) -> ModuleLearningRate {
        let groups = self.factors.iter();
        let one = ModuleLrScheduler::new(rate);
        let mut scheduler = groups.fold(one, |scheduler, (factor, group)| {
            scheduler.with_group(group.clone(), rate * factor)
        });
        scheduler.step()
    }

    /// The parameters that are frozen in an epoch, counted from 0.
    pub fn frozen_in(&self, epoch: usize) -> Vec<ParamId> {
        let stages = self.frozen.iter().filter(|(stage, _)| stage.covers(epoch));
        let ids: HashSet<_> = stages.flat_map(|(_, ids)| ids).copied().collect();
        ids.into_iter().collect()
    }
}

/// The optimizer with another weight decay for these parameters, whose state it forgets.
fn with_group(optimizer: ModuleOptimizer, ids: Vec<ParamId>, decay: f64) -> ModuleOptimizer {
    match ids.is_empty() {
        true => optimizer,
        false => optimizer.with_group(ParamGroup::from_ids(ids), AdamW::new(decay), None),
    }
}

/// Parameters of the same factor together, those of factor 1 left out.
fn by_factor(factors: impl Iterator<Item = (ParamId, f64)>) -> Vec<(f64, ParamGroup)> {
    let mut groups: Vec<(f64, Vec<ParamId>)> = Vec::new();
    for (id, factor) in factors.filter(|(_, factor)| *factor != 1.0) {
        match groups.iter_mut().find(|group| group.0 == factor) {
            Some((_, ids)) => ids.push(id),
            None => groups.push((factor, vec![id])),
        }
    }
    let group = |(factor, ids)| (factor, ParamGroup::from_ids(ids));
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests;
