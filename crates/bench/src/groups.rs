//! Groups of trained parameters: their learning rates, their weight decay, when they are frozen.
//!
//! A setting names parameters by one of [`KEYWORDS`], or by a run of whole components of their
//! names: `ln_1`, `h.0`, `c_attn/b`.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, bail};
use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::{ParamGroup, ParamId};
use burn::optim::ModuleOptimizer;
use models::Model;
use peft_core::geometry::is_part_of;
use peft_core::{Adapted, Method, Origin, Part, Trained, trained};
use serde::{Deserialize, Serialize};

use crate::adamw::AdamW;
use crate::study::TrainConfig;

/// Names of kinds of parameters: a classifier's head, the base without it, what the method adds,
/// the biases of all three, and the norms of the base.
pub const KEYWORDS: [&str; 5] = ["head", "base", "new", "biases", "norms"];

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
    /// If a name matches no trained parameter, several factors hold for one, or an epoch has
    /// nothing to train.
    pub fn new(model: &Adapted<Model>, method: &dyn Method, config: &TrainConfig) -> Result<Self> {
        let params = trained(model);
        let mut factors = Vec::new();
        for param in &params {
            let own = method.rate_factor(&param.name);
            let named = factor(param, &config.rates)?;
            let depth = config
                .layer_decay
                .unwrap_or(1.0)
                .powi(param.distance as i32);
            factors.push((param.id, own * named * depth));
        }
        for name in config.rates.keys() {
            select("train.rates", name, &params)?;
        }
        let mut frozen = Vec::new();
        for freeze in &config.freeze {
            frozen.push((
                freeze.clone(),
                union("train.freeze", &freeze.params, &params)?,
            ));
        }
        let undecayed = union("train.no_decay", &config.no_decay, &params)?;
        let groups = Self {
            weight_decay: config.weight_decay,
            undecayed: undecayed.into_iter().collect(),
            factors: by_factor(factors.into_iter()),
            frozen,
        };
        match (0..config.epochs).find(|epoch| groups.frozen_in(*epoch).len() == params.len()) {
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

/// The factor of `rates` on a parameter: a name counts before a keyword, the longest name before
/// others.
fn factor(param: &Trained, rates: &BTreeMap<String, f64>) -> Result<f64> {
    let weight = |name: &str| match KEYWORDS.contains(&name) {
        true => 0,
        false => name.len(),
    };
    let hits = || rates.keys().filter(|name| matches(name, param));
    let Some(most) = hits().map(|name| weight(name)).max() else {
        return Ok(1.0);
    };
    let best: Vec<_> = hits().filter(|name| weight(name) == most).collect();
    match &best[..] {
        [only] => Ok(rates[*only]),
        several => bail!(
            "`train.rates` has several factors for `{}`: {}; name it more closely",
            param.name,
            quoted(several.iter().copied())
        ),
    }
}

/// Whether a name of a setting means this parameter.
fn matches(name: &str, param: &Trained) -> bool {
    match name {
        "head" => param.origin == Origin::Head,
        "base" => matches!(param.origin, Origin::Base(_)),
        "new" => param.origin == Origin::New,
        "biases" => param.is_bias(),
        "norms" => param.origin == Origin::Base(Part::Norm),
        _ => is_part_of(&name.replace('/', "."), &param.name.replace('/', ".")),
    }
}

/// The parameters that any of the names means.
fn union(key: &str, names: &[String], params: &[Trained]) -> Result<Vec<ParamId>> {
    let mut ids = Vec::new();
    for name in names {
        for id in select(key, name, params)? {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

/// The parameters that a name means.
fn select(key: &str, name: &str, params: &[Trained]) -> Result<Vec<ParamId>> {
    let found = params.iter().filter(|param| matches(name, param));
    let ids: Vec<_> = found.map(|param| param.id).collect();
    if ids.is_empty() {
        bail!(
            "`{key}` names `{name}`, which no trained parameter matches; there are {}",
            known(params)
        );
    }
    Ok(ids)
}

/// What names could mean: the keywords that mean something, and the ends of names.
fn known(params: &[Trained]) -> String {
    const MOST: usize = 30;
    let used = |keyword: &&str| params.iter().any(|param| matches(keyword, param));
    let mut names: Vec<&str> = KEYWORDS.into_iter().filter(used).collect();
    for param in params {
        let mut ends = param.name.rmatch_indices(['.', '/']);
        let second = ends.nth(1).map_or(0, |(at, _)| at + 1);
        if !names.contains(&&param.name[second..]) {
            names.push(&param.name[second..]);
        }
    }
    let more = if names.len() > MOST {
        " and others"
    } else {
        ""
    };
    quoted(names.into_iter().take(MOST)) + more
}

fn quoted<'a>(names: impl Iterator<Item = impl AsRef<str> + 'a>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{}`", name.as_ref())).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
