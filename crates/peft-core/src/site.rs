//! Where in a transformer a method may act, and how a configuration names such places.

use serde::{Deserialize, Serialize};

use crate::error::CoreError;
use crate::exchange::path_ends_with;
use crate::geometry::Table;

/// What a place in the model does, by the field's usual names, whatever the model calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// One matrix for query, key and value (GPT-2's `c_attn`).
    FusedQkv,
    /// Output projection of the attention.
    Output,
    /// First linear of the feed-forward block.
    Up,
    /// Gate of a gated feed-forward block.
    Gate,
    /// Last linear of the feed-forward block.
    Down,
    /// The attention sublayer as a whole.
    AfterAttention,
    /// The feed-forward sublayer as a whole.
    AfterMlp,
    /// A whole transformer layer: what sits there gets the layer's output, normalised in post-norm
    /// models, and gives what takes its place.
    AfterLayer,
    /// The attention core, where keys and values meet the queries.
    Attention,
    /// The output of the embedding layer.
    Embedding,
    /// The output head over the vocabulary or the classes.
    Head,
}

impl Role {
    /// The name used in configurations: `fused_qkv`, `query`, ...
    pub fn name(self) -> &'static str {
        match self {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
            Role::FusedQkv => "fused_qkv",
            Role::Output => "output",
            Role::Up => "up",
            Role::Gate => "gate",
            Role::Down => "down",
            Role::AfterAttention => "after_attention",
            Role::AfterMlp => "after_mlp",
            Role::AfterLayer => "after_layer",
            Role::Attention => "attention",
            Role::Embedding => "embedding",
            Role::Head => "head",
        }
    }
}

/// One linear layer of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Index of the transformer layer, from 0.
    pub layer: usize,
    /// What the layer does.
    pub role: Role,
    /// The module's path in the checkpoint: `transformer.h.0.attn.c_attn`.
    pub path: String,
    /// Input width.
    pub d_in: usize,
    /// Output width.
    pub d_out: usize,
}

impl Site {
    /// The module's own name, the last component of its path: `c_attn`.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// A set of linear layers as a configuration names it: `["c_attn"]`, `["query", "value"]`,
/// `"all-linear"`.
///
/// A name matches a role, or the end of a module path in whole components, as in HF PEFT. Without
/// targets a method takes query and value projections, or the fused projection where there is one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a name, or a list of names")]
pub enum Targets {
    /// Query and value, or the fused projection.
    #[default]
    Default,
    /// A single name, or `"all-linear"` for every linear layer but the head.
    One(String),
    /// Several names.
    Many(Vec<String>),
}

/// The target that stands for every linear layer of the transformer's blocks.
pub const ALL_LINEAR: &str = "all-linear";

impl Targets {
    /// Every linear layer of the blocks.
    pub fn all_linear() -> Self {
        Targets::One(ALL_LINEAR.into())
    }

    /// The names as the configuration spells them; none for the default.
    pub fn names(&self) -> &[String] {
        match self {
            Targets::Default => &[],
            Targets::One(name) => std::slice::from_ref(name),
            Targets::Many(names) => names,
        }
    }

    /// Whether the layer is among the targets.
    pub fn contains(&self, site: &Site) -> bool {
        self.contains_path(&site.path, Some(site.role))
    }

    /// Whether a layer of this path and role is among the targets; a layer without a role is no
    /// place for a method.
    pub fn contains_path(&self, path: &str, role: Option<Role>) -> bool {
        let Some(role) = role else {
            return false;
        };
        match self {
            Targets::Default => matches!(role, Role::Query | Role::Value | Role::FusedQkv),
            _ => self
                .names()
                .iter()
                .any(|name| name_matches(name, path, role)),
        }
    }

    /// Whether the token embedding is among the names, for a method that has a place on it.
    pub fn name_table(&self, table: &Table) -> bool {
        let mut names = self.names().iter();
        names.any(|name| name == Role::Embedding.name() || path_ends_with(&table.path, name))
    }

    /// The layers among `sites` that are targets.
    ///
    /// # Errors
    /// If any of the names matches nothing: the error lists what could have been meant.
    pub fn select<'a>(&self, sites: &'a [Site]) -> Result<Vec<&'a Site>, CoreError> {
        self.select_or(sites, |_| false)
    }

    /// The layers among `sites` that are targets, where a name may also stand for something else.
    ///
    /// # Errors
    /// If any of the names matches neither.
    pub fn select_or<'a>(
        &self,
        sites: &'a [Site],
        elsewhere: impl Fn(&str) -> bool,
    ) -> Result<Vec<&'a Site>, CoreError> {
        let matches_a_site = |name: &str| {
            let mut sites = sites.iter();
            sites.any(|site| name_matches(name, &site.path, site.role))
        };
        let unmatched = self
            .names()
            .iter()
            .find(|name| !matches_a_site(name) && !elsewhere(name));
        if let Some(name) = unmatched {
            return Err(CoreError::NoSuchTarget {
                target: name.clone(),
                known: known_names(sites),
            });
        }
        let selected: Vec<_> = sites.iter().filter(|site| self.contains(site)).collect();
        if selected.is_empty() && !self.names().iter().any(|name| elsewhere(name)) {
            let target = format!("{:?}", self.names());
            return Err(CoreError::NoSuchTarget {
                target,
                known: known_names(sites),
            });
        }
        Ok(selected)
    }
}

fn name_matches(name: &str, path: &str, role: Role) -> bool {
    !name.is_empty() && (name == ALL_LINEAR || name == role.name() || path_ends_with(path, name))
}

pub(crate) fn known_names(sites: &[Site]) -> String {
    let mut names = vec![ALL_LINEAR];
    for site in sites {
        for name in [site.name(), site.role.name()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Vec<Site> {
        let site = |layer, role, path: &str| Site {
            layer,
            role,
            path: path.into(),
            d_in: 4,
            d_out: 4,
        };
        vec![
            site(0, Role::Query, "encoder.layer.0.attention.self.query"),
            site(0, Role::Output, "encoder.layer.0.attention.output.dense"),
            site(0, Role::Down, "encoder.layer.0.output.dense"),
            site(1, Role::Query, "encoder.layer.1.attention.self.query"),
        ]
    }

    fn roles(targets: Targets) -> Vec<(usize, Role)> {
        targets
            .select(&sites())
            .unwrap()
            .iter()
            .map(|s| (s.layer, s.role))
            .collect()
    }

    #[test]
    fn a_name_matches_whole_components_at_the_end_of_the_path() {
        let dense = Targets::Many(vec!["attention.output.dense".into()]);
        assert_eq!(roles(dense), [(0, Role::Output)]);
        let part = Targets::Many(vec!["ense".into()]);
        assert!(part.select(&sites()).is_err());
    }

    #[test]
    fn a_role_matches_whatever_the_model_calls_the_layer() {
        assert_eq!(roles(Targets::One("down".into())), [(0, Role::Down)]);
    }

    #[test]
    fn all_linear_takes_every_site() {
        assert_eq!(roles(Targets::all_linear()).len(), 4);
    }

    #[test]
    fn one_misspelt_name_among_good_ones_is_an_error_that_lists_the_known_names() {
        let targets = Targets::Many(vec!["query".into(), "qury".into()]);
        let message = targets.select(&sites()).unwrap_err().to_string();
        assert!(
            message.contains("`qury`") && message.contains("query, dense"),
            "{message}"
        );
    }
}
