//! What the names of settings mean: parameters of a model.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use burn::module::ParamId;
use models::Model;
use peft_core::geometry::is_part_of;
use peft_core::{Adapted, Origin, Part, Trained, parameter_names, trained};

use crate::study::TrainConfig;

/// Names of kinds of parameters: a classifier's head, the base without it, what the method adds,
/// the biases of all three, and the norms of the base.
pub const KEYWORDS: [&str; 5] = ["head", "base", "new", "biases", "norms"];

/// The parameters of one model under its method.
pub(super) struct Params {
    pub(super) trained: Vec<Trained>,
    /// The names of all, frozen ones too.
    names: Vec<String>,
}

impl Params {
    pub(super) fn of(model: &Adapted<Model>) -> Self {
        Self {
            trained: trained(model),
            names: parameter_names(model),
        }
    }

    /// The trained parameters that a name means; none where it means others of the model, which
    /// other methods of a study train.
    pub(super) fn select(&self, key: &str, name: &str) -> Result<Vec<ParamId>> {
        let found = self.trained.iter().filter(|param| matches(name, param));
        let ids: Vec<_> = found.map(|param| param.id).collect();
        if ids.is_empty() && !self.knows(name) {
            bail!(
                "`{key}` names `{name}`, which no parameter of the model matches; those that train \
                 are {}",
                known(&self.trained)
            );
        }
        Ok(ids)
    }

    /// The trained parameters that any of the names means.
    pub(super) fn union(&self, key: &str, names: &[String]) -> Result<Vec<ParamId>> {
        let mut ids = Vec::new();
        for name in names {
            for id in self.select(key, name)? {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }

    /// Whether a name can mean something in this model. What stands before a `/` is the place of
    /// something new, which another method may put there.
    fn knows(&self, name: &str) -> bool {
        let place = name.split_once('/').map(|(place, _)| place);
        let is_known = |part: &str| self.names.iter().any(|known| is_named(part, known));
        KEYWORDS.contains(&name) || is_known(name) || place.is_some_and(is_known)
    }
}

/// The names of all settings, each with its key.
fn settings(config: &TrainConfig) -> Vec<(&'static str, &str)> {
    let rates = config.rates.keys().map(|name| ("train.rates", name));
    let undecayed = config.no_decay.iter().map(|name| ("train.no_decay", name));
    let frozen = config.freeze.iter().flat_map(|freeze| &freeze.params);
    let frozen = frozen.map(|name| ("train.freeze", name));
    let all = rates.chain(undecayed).chain(frozen);
    all.map(|(key, name)| (key, name.as_str())).collect()
}

/// Whether any setting names parameters.
pub fn has_names(config: &TrainConfig) -> bool {
    !settings(config).is_empty()
}

/// Refuses names that mean none of the parameters that the methods of a study train, all together.
///
/// # Errors
/// Names the key, the name and what there is.
pub fn check_used(config: &TrainConfig, trained: &[Trained]) -> Result<()> {
    let is_used = |name: &str| trained.iter().any(|param| matches(name, param));
    match settings(config).iter().find(|(_, name)| !is_used(name)) {
        Some((key, name)) => bail!(
            "`{key}` names `{name}`, which no method of the study trains; they train {}",
            known(trained)
        ),
        None => Ok(()),
    }
}

/// The factor of `rates` on a parameter: a name counts before a keyword, the longest name before
/// others.
pub(super) fn factor(param: &Trained, rates: &BTreeMap<String, f64>) -> Result<f64> {
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
        _ => is_named(name, &param.name),
    }
}

/// Whether a name is a run of whole components of a parameter's.
fn is_named(name: &str, param: &str) -> bool {
    is_part_of(&name.replace('/', "."), &param.replace('/', "."))
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
