//! BOFT: the input of a frozen linear layer turned by butterfly factors, its outputs scaled.
//!
//! Paper: Liu et al. 2023, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
//! arXiv 2311.06243.
//! Seam: linear layers. `y = s * (x R W) + b` where `R` is a product of block-diagonal rotations
//! (Cayley maps), the features reordered before and after each one so that every factor mixes
//! twice as many of them. Starts at `R = I`, `s = 1`.

mod layer;

use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Form, Geometry, Init, Method, MethodConfig, MethodInfo, Proj, Rule,
    Site, Start, Targets, exchange::peft_targets,
};
use serde::{Deserialize, Serialize};

use crate::family::{key, peft_targets_of, place, selected};
pub use layer::BoftLinear;

/// Configuration of BOFT, `kind = "boft"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Boft {
    /// Width of a block; 0 where `blocks` is given.
    pub block_size: usize,
    /// Number of blocks of a layer; 0 where `block_size` is given.
    pub blocks: usize,
    /// Number of butterfly factors; with one the rotation is block-diagonal. While training, every
    /// block of every factor is inverted in each pass (on the host, so that a GPU waits for it).
    pub butterfly_factors: usize,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Boft {
    fn default() -> Self {
        Self {
            block_size: 4,
            blocks: 0,
            butterfly_factors: 1,
            targets: Targets::Default,
        }
    }
}

impl Boft {
    /// Number of blocks of a layer and their width.
    fn cut(&self, site: &Site) -> (usize, usize) {
        match self.blocks {
            0 => (site.d_in / self.block_size, self.block_size),
            blocks => (blocks, site.d_in / blocks),
        }
    }

    fn shape(&self, site: &Site) -> [usize; 4] {
        let (blocks, size) = self.cut(site);
        [self.butterfly_factors, blocks, size, size]
    }

    fn check_site(&self, site: &Site) -> Result<(), CoreError> {
        let (d_in, path) = (site.d_in, &site.path);
        let given = self.block_size.max(self.blocks);
        let key = match self.blocks {
            0 => "block_size",
            _ => "blocks",
        };
        if !d_in.is_multiple_of(given) || self.cut(site).1 < 2 {
            let expected = format!("to cut the {d_in} inputs of `{path}` into blocks of 2 or more");
            return Err(CoreError::bad_value(key, given, &expected));
        }
        let (blocks, size) = self.cut(site);
        let factors = self.butterfly_factors;
        // The last factor mixes the features of 2^(factors - 1) blocks.
        let mixed = u32::try_from(factors - 1).ok();
        let mixed = mixed.and_then(|doublings| 2usize.checked_pow(doublings));
        let fits = mixed.is_some_and(|mixed| blocks.is_multiple_of(mixed));
        if factors > 1 && !(fits && size.is_multiple_of(2)) {
            let expected = format!(
                "blocks of an even width, and 2^(factors - 1) to divide the {blocks} of `{path}`"
            );
            return Err(CoreError::bad_value(
                "butterfly_factors",
                factors,
                &expected,
            ));
        }
        Ok(())
    }
}

impl MethodConfig for Boft {
    const INFO: MethodInfo = MethodInfo {
        kind: "boft",
        name: "BOFT",
        paper: "Liu et al. 2023, arXiv 2311.06243",
        seam: "linear layers",
        formula: "factors in block + out per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("block_size"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Self {
                targets: Targets::all_linear(),
                ..Self::default()
            },
            Self {
                block_size: 2,
                butterfly_factors: 2,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    /// PEFT has one factor wherever its CUDA extension was not built, whatever its configuration
    /// says, and saves what was asked for. So a file is read as one of a single factor; the
    /// tensors of more factors are refused by their shape.
    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "BOFT" {
            return Ok(None);
        }
        fields.ignore(&["init_weights", "boft_n_butterfly_factor"]);
        Ok(Some(Self {
            targets: peft_targets_of(fields, geometry)?,
            block_size: fields.take("boft_block_size")?.unwrap_or(4),
            blocks: fields.take("boft_block_num")?.unwrap_or(0),
            butterfly_factors: 1,
        }))
    }
}

impl Method for Boft {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if (self.block_size == 0) == (self.blocks == 0) {
            let expected = "exactly one of `block_size` and `blocks` above 0";
            return Err(CoreError::bad_value(
                "block_size",
                self.block_size,
                expected,
            ));
        }
        if self.butterfly_factors == 0 {
            return Err(CoreError::bad_value("butterfly_factors", 0, "at least 1"));
        }
        let sites = self.targets.select(&geometry.sites)?;
        sites.into_iter().try_for_each(|site| self.check_site(site))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let rotation: Tensor<4> = init.zeros(self.shape(site));
        let scale = init.full([site.d_out], 1.0);
        Proj::new(BoftLinear::new(base, rotation, scale))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites
            .map(|site| self.shape(site).iter().product::<usize>() + site.d_out)
            .sum()
    }

    fn size(&self) -> Option<u64> {
        // A number of blocks was given in its place.
        (self.block_size > 0).then_some(self.block_size as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT's layer is one of PyTorch's `Linear` only, and has more factors on CUDA only.
        if geometry.keeps_weights_in_out() || self.butterfly_factors > 1 {
            return None;
        }
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "BOFT", "boft_block_size": self.block_size,
            "boft_block_num": self.blocks, "boft_n_butterfly_factor": 1, "boft_dropout": 0.0,
            "target_modules": peft_targets(&sites, geometry), "bias": "none",
            "fan_in_fan_out": false, "init_weights": true,
        });
        let mut rules = Vec::new();
        for site in sites {
            rules.push(Rule::as_is(place(site, "rotation"), key(site, "boft_R")));
            let form = Form::Shaped {
                ours: vec![site.d_out],
                theirs: vec![site.d_out, 1],
            };
            rules.push(Rule::new(place(site, "scale"), key(site, "boft_s"), form));
        }
        Some(Foreign::new(fields, rules))
    }
}

#[cfg(test)]
mod tests;
