//! Target modules as HF PEFT names them, resolved to the layers of a model.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::Fields;
use crate::error::CoreError;
use crate::geometry::Geometry;
use crate::site::{ALL_LINEAR, Site, Targets};

/// Whether a module path is `name`, or ends in it in whole components.
pub fn path_ends_with(path: &str, name: &str) -> bool {
    let rest = path.strip_suffix(name);
    !name.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Takes `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`.
///
/// A plain list of names that each match a layer stays as it is; anything else becomes the list of
/// full paths it selects. Returns the names beside them that match no linear layer of the blocks:
/// an embedding, a head, or nothing. As in PEFT no layers to transform stand for all, and a target
/// named by its whole path is one whatever its layer.
///
/// # Errors
/// If nothing is selected, a pattern is no regular expression, or layers are no whole numbers.
pub fn resolve_targets(
    fields: &mut Fields,
    geometry: &Geometry,
) -> Result<(Targets, Vec<String>), CoreError> {
    let wanted = fields.require::<Value>("target_modules")?;
    let excluded = fields.take::<Value>("exclude_modules")?;
    let layers = layers_to_transform(fields)?;
    let layers_pattern = fields.take::<Value>("layers_pattern")?.is_some();
    let wanted = Names::new(&wanted, "target_modules", fields)?;
    let excluded = match &excluded {
        Some(value) => Some(Names::new(value, "exclude_modules", fields)?),
        None => None,
    };
    let in_layers = |site: &Site| {
        let number = site.layer as i64;
        let listed = |layers: &Vec<i64>| layers.contains(&number);
        layers.as_ref().is_none_or(listed) || wanted.names_whole(&site.path)
    };
    let selected: Vec<_> = geometry
        .sites
        .iter()
        .filter(|site| wanted.matches(&site.path))
        .filter(|site| !excluded.as_ref().is_some_and(|e| e.matches(&site.path)))
        .filter(|site| in_layers(site))
        .collect();
    let stray = wanted.names_matching_none(geometry);
    if selected.is_empty() && stray.is_empty() {
        return Err(CoreError::NoSuchTarget {
            target: wanted.to_string(),
            known: crate::site::known_names(&geometry.sites),
        });
    }
    let narrowed = excluded.is_some() || layers.is_some() || layers_pattern;
    let targets = match wanted {
        Names::AllLinear if !narrowed => Targets::all_linear(),
        Names::Many(names) if !narrowed => Targets::Many(
            names
                .into_iter()
                .filter(|name| !stray.contains(name))
                .collect(),
        ),
        _ => Targets::Many(selected.iter().map(|site| site.path.clone()).collect()),
    };
    Ok((targets, stray))
}

/// Takes `layers_to_transform`: a number, or a list of them, which is off where it is empty.
fn layers_to_transform(fields: &mut Fields) -> Result<Option<Vec<i64>>, CoreError> {
    let key = "layers_to_transform";
    let Some(found) = fields.take::<Value>(key)? else {
        return Ok(None);
    };
    let parsed = match found.as_i64() {
        Some(one) => Ok(vec![one]),
        None => serde_json::from_value(found.clone()),
    };
    let layers: Vec<i64> = parsed.map_err(|_| fields.unsupported(key, &found, "whole numbers"))?;
    Ok((!layers.is_empty()).then_some(layers))
}

/// Takes `target_modules` and `exclude_modules` over other modules than linear layers; returns those
/// selected.
///
/// # Errors
/// If nothing is selected, a name stands for another module of the base, or a pattern is no regular
/// expression.
pub fn resolve_modules<'a>(
    fields: &mut Fields,
    modules: &[&'a str],
    geometry: &Geometry,
) -> Result<Vec<&'a str>, CoreError> {
    let wanted = fields.require::<Value>("target_modules")?;
    let excluded = fields.take::<Value>("exclude_modules")?;
    let wanted = Names::new(&wanted, "target_modules", fields)?;
    let excluded = match &excluded {
        Some(value) => Some(Names::new(value, "exclude_modules", fields)?),
        None => None,
    };
    let none_of_them = |target: String| CoreError::NoSuchTarget {
        target,
        known: modules.join(", "),
    };
    if let Names::Many(names) = &wanted {
        let all = geometry
            .params
            .iter()
            .filter_map(|p| p.name.rsplit_once('.'));
        let others: Vec<&str> = all
            .map(|(m, _)| m)
            .filter(|m| !modules.contains(m))
            .collect();
        let stray = |name: &&String| others.iter().any(|other| path_ends_with(other, name));
        if let Some(name) = names.iter().find(stray) {
            return Err(none_of_them(name.clone()));
        }
    }
    let selected = modules.iter().filter(|module| wanted.matches(module));
    let kept = |module: &&&str| !excluded.as_ref().is_some_and(|e| e.matches(module));
    let selected: Vec<&str> = selected.filter(kept).copied().collect();
    match selected.is_empty() {
        true => Err(none_of_them(wanted.to_string())),
        false => Ok(selected),
    }
}

enum Names {
    AllLinear,
    Many(Vec<String>),
    Pattern(Regex),
}

impl Names {
    fn new(value: &Value, key: &str, fields: &Fields) -> Result<Self, CoreError> {
        match value {
            Value::String(name) if name == ALL_LINEAR => Ok(Self::AllLinear),
            Value::String(pattern) => {
                let regex = Regex::new(&format!("^(?:{pattern})$"));
                regex
                    .map(Self::Pattern)
                    .map_err(|_| fields.unsupported(key, value, "a regular expression"))
            }
            other => serde_json::from_value(other.clone())
                .map(Self::Many)
                .map_err(|_| fields.unsupported(key, value, "a list of module names")),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Many(names) => names.iter().any(|name| path_ends_with(path, name)),
            Self::Pattern(regex) => regex.is_match(path),
        }
    }

    /// Whether this whole path is one of the names.
    fn names_whole(&self, path: &str) -> bool {
        matches!(self, Self::Many(names) if names.iter().any(|name| name == path))
    }

    fn names_matching_none(&self, geometry: &Geometry) -> Vec<String> {
        let Self::Many(names) = self else {
            return Vec::new();
        };
        let matches_a_site =
            |name: &&String| geometry.sites.iter().any(|s| path_ends_with(&s.path, name));
        let stray = names.iter().filter(|name| !matches_a_site(name));
        stray.cloned().collect()
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AllLinear => f.write_str(ALL_LINEAR),
            Self::Many(names) => write!(f, "{names:?}"),
            Self::Pattern(regex) => write!(f, "{regex}"),
        }
    }
}

/// These layers as `target_modules` names them: by the shortest ends of their paths that no other
/// module of the base shares.
pub fn peft_targets(selected: &[&Site], geometry: &Geometry) -> Vec<String> {
    let paths: Vec<&str> = selected.iter().map(|site| site.path.as_str()).collect();
    peft_names(&paths, geometry)
}

/// Any modules of these paths, likewise.
pub fn peft_names(selected: &[&str], geometry: &Geometry) -> Vec<String> {
    let modules = || {
        geometry
            .params
            .iter()
            .filter_map(|p| p.name.rsplit_once('.'))
    };
    let others: Vec<&str> = modules()
        .map(|(module, _)| module)
        .filter(|module| !selected.contains(module))
        .collect();
    let mut names: Vec<String> = Vec::new();
    for path in selected {
        if names.iter().any(|name| path_ends_with(path, name)) {
            continue;
        }
        let starts = path.rmatch_indices('.').map(|(dot, _)| dot + 1);
        let ends = starts.map(|start| &path[start..]);
        let free = |end: &&str| !others.iter().any(|module| path_ends_with(module, end));
        names.push(ends.clone().find(free).unwrap_or(path).into());
    }
    names
}

/// A pattern table (`rank_pattern`, `alpha_pattern`) as values by full path, for the targets that
/// a key matches, the token embedding among them where it is one. As in PEFT a key is a regular expression for the end of the path in whole
/// components, and the first that matches counts.
///
/// # Errors
/// If a key is no regular expression, or a value of another type.
pub fn resolve_pattern<T: serde::de::DeserializeOwned>(
    fields: &mut Fields,
    key: &str,
    geometry: &Geometry,
    targets: &Targets,
) -> Result<BTreeMap<String, T>, CoreError> {
    let table: serde_json::Map<String, Value> = fields.take(key)?.unwrap_or_default();
    let mut patterns = Vec::new();
    for (pattern, value) in table {
        let regex = Regex::new(&format!("^(?:.*\\.)?(?:{pattern})$")).map_err(|_| {
            fields.unsupported(key, &pattern.clone().into(), "a regular expression")
        })?;
        patterns.push((regex, value));
    }
    let mut resolved = BTreeMap::new();
    let sites = geometry.sites.iter().filter(|site| targets.contains(site));
    let table = Some(&geometry.table).filter(|table| targets.name_table(table));
    let paths = sites.map(|site| &site.path);
    for path in paths.chain(table.map(|table| &table.path)) {
        let first = patterns.iter().find(|(regex, _)| regex.is_match(path));
        let Some((_, value)) = first else { continue };
        let parsed = serde_json::from_value(value.clone());
        let parsed = parsed.map_err(|e| fields.unsupported(key, value, &e.to_string()))?;
        resolved.insert(path.clone(), parsed);
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests;
