//! LoRA: a trained low-rank product beside a frozen linear layer.
//!
//! Paper: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685;
//! the scaling of `rslora`: Kalajdzievski 2023, arXiv 2312.03732.
//! Seam: linear layers, and the token embedding where it is among the targets.
//! `y = x W + b + scaling * dropout(x) A B` with `scaling = alpha / rank`; with `gating` (Mao et al.
//! 2022, arXiv 2110.07577) a trained gate takes the place of the scaling.
//! Starts as HF PEFT does: `A` Kaiming-uniform, `B` zero.

mod embedding;
mod gated;
mod hub;
mod linear;
pub(crate) mod peft;
pub mod split;

use std::collections::BTreeMap;

use peft_core::exchange::path_ends_with;
use peft_core::geometry::is_part_of;
use peft_core::{
    BaseParam, CoreError, Fields, Foreign, Gate, Geometry, Init, LookupSlot, Method, MethodConfig,
    MethodInfo, Proj, Site, Start, Table, Targets, check,
};
use serde::{Deserialize, Serialize};

pub use embedding::LoraEmbedding;
pub use gated::GatedLora;
pub use linear::{Factors, LoraLinear};

/// Configuration of LoRA, `kind = "lora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of `A` while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named. The
    /// role `"embedding"` or the embedding's name adds the token embedding.
    pub targets: Targets,
    /// Scaling `alpha / sqrt(rank)`, which keeps updates of high ranks from shrinking (rsLoRA).
    #[serde(skip_serializing_if = "is_default")]
    pub rslora: bool,
    /// Ranks of single targets, by the end of their path; the longest that matches counts.
    #[serde(skip_serializing_if = "is_default")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Values of `alpha` of single targets, likewise.
    #[serde(skip_serializing_if = "is_default")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Which biases of the base are trained.
    #[serde(skip_serializing_if = "is_default")]
    pub bias: Bias,
    /// Whether `B` has a bias of its own.
    #[serde(skip_serializing_if = "is_default")]
    pub lora_bias: bool,
    /// Modules of the base that are trained whole, by a part of their path.
    #[serde(skip_serializing_if = "is_default")]
    pub modules_to_save: Vec<String>,
    /// A trained gate on every update, one number for every text (see [`Gate`]), in place of the
    /// scaling: `alpha` plays no part then, and nothing merges.
    #[serde(skip_serializing_if = "is_default")]
    pub gating: bool,
    /// Whether its mean is over padding too, as in AdapterHub; what is read from there says so.
    #[serde(skip_serializing_if = "is_default")]
    pub counts_padding: bool,
}

/// Which biases of the base are trained beside the updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// The biases of the targets.
    LoraOnly,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: Targets::Default,
            rslora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            bias: Bias::None,
            lora_bias: false,
            modules_to_save: Vec::new(),
            gating: false,
            counts_padding: false,
        }
    }
}

impl Lora {
    /// The rank at a layer.
    pub(crate) fn rank_at(&self, path: &str) -> usize {
        longest_match(&self.rank_pattern, path).unwrap_or(self.rank)
    }

    /// The factor on the update at a layer.
    pub(crate) fn scaling_at(&self, path: &str) -> f64 {
        let alpha = longest_match(&self.alpha_pattern, path).unwrap_or(self.alpha);
        let rank = self.rank_at(path) as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    pub(crate) fn selected<'a>(&self, geometry: &'a Geometry) -> impl Iterator<Item = &'a Site> {
        let sites = geometry.sites.iter();
        sites.filter(|site| self.targets.contains(site))
    }

    /// Whether the token embedding is a target.
    fn embeds(&self, table: &Table) -> bool {
        self.targets.name_table(table)
    }

    /// Refuses what has no meaning beside a gate.
    fn check_gating(&self, geometry: &Geometry) -> Result<(), CoreError> {
        let given = [
            ("rslora", self.rslora),
            ("alpha_pattern", !self.alpha_pattern.is_empty()),
            ("lora_bias", self.lora_bias),
        ];
        let expected = "left out where `gating` is on";
        if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(CoreError::bad_value(key, "given", expected));
        }
        if self.embeds(&geometry.table) {
            let expected = "linear layers alone where `gating` is on";
            return Err(CoreError::bad_value("targets", "the embedding", expected));
        }
        Ok(())
    }

    fn check_patterns(&self, geometry: &Geometry) -> Result<(), CoreError> {
        let keys = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
        let table = Some(&geometry.table).filter(|table| self.embeds(table));
        let table = table.map(|table| table.path.as_str());
        for key in keys {
            let linear = self.selected(geometry).map(|site| site.path.as_str());
            let mut paths = linear.chain(table);
            if !paths.any(|path| path_ends_with(path, key)) {
                let expected = "the end of a target's path";
                return Err(CoreError::bad_value(
                    "rank_pattern / alpha_pattern",
                    key,
                    expected,
                ));
            }
        }
        self.rank_pattern
            .values()
            .try_for_each(|rank| check::rank(*rank))
    }
}

/// The value whose key is the longest that ends the path.
fn longest_match<T: Copy>(table: &BTreeMap<String, T>, path: &str) -> Option<T> {
    let hits = table.iter().filter(|(key, _)| path_ends_with(path, key));
    hits.max_by_key(|(key, _)| key.len())
        .map(|(_, value)| *value)
}

impl MethodConfig for Lora {
    const INFO: MethodInfo = MethodInfo {
        kind: "lora",
        name: "LoRA",
        paper: "Hu et al. 2021, arXiv 2106.09685",
        seam: "linear layers",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Lora {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Lora {
                rank: 3,
                targets: Targets::all_linear(),
                rslora: true,
                ..Self::default()
            },
            Lora {
                rank: 2,
                bias: Bias::LoraOnly,
                lora_bias: true,
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        peft::read(fields, geometry)
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        hub::read(fields, geometry)
    }
}

impl Method for Lora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        if !self.alpha.is_finite() {
            return Err(CoreError::bad_value("alpha", self.alpha, "a finite number"));
        }
        check::dropout(self.dropout)?;
        let table = |name: &str| Targets::One(name.into()).name_table(&geometry.table);
        self.targets.select_or(&geometry.sites, table)?;
        for name in &self.modules_to_save {
            if !geometry.has_module(name) {
                let expected = "the name of a module of the base";
                return Err(CoreError::bad_value("modules_to_save", name, expected));
            }
        }
        if self.gating {
            self.check_gating(geometry)?;
        }
        Gate::check(self.gating, self.counts_padding, geometry)?;
        self.check_patterns(geometry)
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        match self.gating {
            true => Proj::new(GatedLora::new(self, site, base, init)),
            false => Proj::new(LoraLinear::new(self, site, base, init)),
        }
    }

    /// A gate is a mean over a row.
    fn needs_own_rows(&self) -> bool {
        self.gating
    }

    fn lookup(&self, table: &Table, init: &mut Init) -> Option<LookupSlot> {
        let embeds = self.embeds(table);
        embeds.then(|| LookupSlot::new(LoraEmbedding::new(self, table, init)))
    }

    fn trains(&self, param: &BaseParam) -> bool {
        let bias = match self.bias {
            Bias::None => false,
            Bias::All => param.is_bias(),
            Bias::LoraOnly => {
                let layer = param.name.strip_suffix(".bias");
                layer.is_some_and(|layer| self.targets.contains_path(layer, param.role))
            }
        };
        let saved = |name: &String| is_part_of(name, &param.name);
        bias || self.modules_to_save.iter().any(saved)
    }

    fn unties_head(&self, geometry: &Geometry) -> bool {
        let tied = |name: &String| name == "lm_head" || path_ends_with(&geometry.table.path, name);
        self.modules_to_save.iter().any(tied)
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let own = self.selected(geometry).map(|site| {
            let bias = if self.lora_bias { site.d_out } else { 0 };
            let gate = match self.gating {
                true => Gate::parameters(site.d_in),
                false => 0,
            };
            self.rank_at(&site.path) * (site.d_in + site.d_out) + bias + gate
        });
        let table = &geometry.table;
        let embedding = match self.embeds(table) {
            true => self.rank_at(&table.path) * (table.rows + table.width),
            false => 0,
        };
        own.sum::<usize>() + embedding + geometry.count(|param| self.trains(param))
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    /// PEFT has no gates.
    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        (!self.gating).then(|| peft::write(self, geometry))
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        hub::write(self, geometry, name)
    }
}

#[cfg(test)]
mod tests;
