//! OFT: the input of a frozen linear layer turned by a block-diagonal rotation.
//!
//! Paper: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
//! arXiv 2306.07280; on the input and with the series: Qiu et al. 2025, arXiv 2506.19847.
//! Seam: linear layers. `y = x R W + b`; every block of `R` is the Cayley map of a skew-symmetric
//! matrix, exact or as a Neumann series. Starts at `R = I`.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, exchange::peft_targets,
};
use serde::{Deserialize, Serialize};

use crate::cayley::{apply_blocks, cayley, cayley_neumann, turned_rows};
use crate::family::{key, peft_targets_of, place, selected};

/// Configuration of OFT, `kind = "oft"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oft {
    /// Width of a block, or the nearest divisor of a layer's input width; 0 where `blocks` is given.
    pub block_size: usize,
    /// Number of blocks of a layer, or the nearest divisor; 0 where `block_size` is given.
    pub blocks: usize,
    /// Whether all blocks of a layer are the same.
    pub block_share: bool,
    /// Terms of the Neumann series; 0 for the exact map, which while training inverts every block in
    /// each pass (on the host, so that a GPU waits for it).
    pub neumann_terms: usize,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Oft {
    fn default() -> Self {
        Self {
            block_size: 32,
            blocks: 0,
            block_share: false,
            neumann_terms: 5,
            targets: Targets::Default,
        }
    }
}

impl Oft {
    /// Number of blocks and their width at a layer.
    fn cut(&self, site: &Site) -> (usize, usize) {
        match self.blocks {
            0 => {
                let size = nearest_divisor(site.d_in, self.block_size);
                (site.d_in / size, size)
            }
            blocks => {
                let blocks = nearest_divisor(site.d_in, blocks);
                (blocks, site.d_in / blocks)
            }
        }
    }

    /// Trained blocks of a layer and numbers in each.
    fn shape(&self, site: &Site) -> [usize; 2] {
        let (blocks, size) = self.cut(site);
        let blocks = if self.block_share { 1 } else { blocks };
        [blocks, size * (size - 1) / 2]
    }
}

/// The divisor nearest to what is wanted, the smaller of two; what HF PEFT does with a width that
/// the block size does not divide.
fn nearest_divisor(width: usize, wanted: usize) -> usize {
    let divisors = (1..=width).filter(|d| width.is_multiple_of(*d));
    divisors
        .min_by_key(|divisor| divisor.abs_diff(wanted))
        .unwrap_or(1)
}

impl MethodConfig for Oft {
    const INFO: MethodInfo = MethodInfo {
        kind: "oft",
        name: "OFT",
        paper: "Qiu et al. 2023, arXiv 2306.07280",
        seam: "linear layers",
        formula: "in (block - 1) / 2 per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("block_size"),
    };

    fn examples() -> Vec<Self> {
        let exact = Oft {
            block_size: 0,
            blocks: 2,
            neumann_terms: 0,
            targets: Targets::all_linear(),
            ..Self::default()
        };
        vec![
            Oft {
                block_size: 4,
                targets: Targets::all_linear(),
                ..Self::default()
            },
            Oft {
                block_share: true,
                ..exact.clone()
            },
            exact,
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "OFT" {
            return Ok(None);
        }
        // `eps` is the reach of `coft`, which is refused.
        fields.ignore(&["init_weights", "eps"]);
        let series = fields.take("use_cayley_neumann")?.unwrap_or(true);
        let terms = fields.take("num_cayley_neumann_terms")?.unwrap_or(5);
        let blocks = fields.take("r")?.unwrap_or(0);
        let oft = Oft {
            targets: peft_targets_of(fields, geometry)?,
            block_size: fields.take("oft_block_size")?.unwrap_or(32),
            blocks,
            block_share: fields.take("block_share")?.unwrap_or(false),
            neumann_terms: if series { terms } else { 0 },
        };
        Ok(Some(oft))
    }
}

impl Method for Oft {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if (self.block_size == 0) == (self.blocks == 0) {
            let expected = "exactly one of `block_size` and `blocks` above 0";
            return Err(CoreError::bad_value(
                "block_size",
                self.block_size,
                expected,
            ));
        }
        if self.neumann_terms == 1 {
            let expected = "0 for the exact map, or at least 2: one term trains nothing";
            return Err(CoreError::bad_value("neumann_terms", 1, expected));
        }
        for site in self.targets.select(&geometry.sites)? {
            let (_, size) = self.cut(site);
            if size < 2 {
                let (d_in, path) = (site.d_in, &site.path);
                let expected = format!("blocks of at least 2 of the {d_in} inputs of `{path}`");
                return Err(CoreError::bad_value("block_size", size, &expected));
            }
        }
        Ok(())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (_, size) = self.cut(site);
        Proj::new(OftLinear {
            rotation: Param::from_tensor(init.zeros(self.shape(site))),
            skew: Skew::new(size, init.device()),
            neumann_terms: self.neumann_terms,
            steady: None,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites
            .map(|site| self.shape(site).iter().product::<usize>())
            .sum()
    }

    fn size(&self) -> Option<u64> {
        // A number of blocks was given in its place.
        (self.block_size > 0).then_some(self.block_size as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT's layer is one of PyTorch's `Linear` only.
        if geometry.keeps_weights_in_out() {
            return None;
        }
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "OFT", "r": self.blocks, "oft_block_size": self.block_size,
            "block_share": self.block_share, "use_cayley_neumann": self.neumann_terms > 0,
            "num_cayley_neumann_terms": if self.neumann_terms > 0 { self.neumann_terms } else { 5 },
            "target_modules": peft_targets(&sites, geometry), "bias": "none", "coft": false,
            "eps": 6e-5, "module_dropout": 0.0, "fan_in_fan_out": false, "init_weights": true,
        });
        let rule = |site: &&Site| Rule::as_is(place(site, "rotation"), key(site, "oft_R.weight"));
        Some(Foreign::new(fields, sites.iter().map(rule).collect()))
    }
}

/// A linear layer whose input is turned.
#[derive(Module, Debug)]
pub struct OftLinear {
    base: Proj,
    /// The entries above the diagonals, row by row, `[blocks, size (size - 1) / 2]`
    rotation: Param<Tensor<2>>,
    skew: Skew,
    neumann_terms: usize,
    /// The blocks of the rotation, where nothing is trained any more.
    steady: Option<Tensor<3>>,
}

impl OftLinear {
    /// The blocks of the rotation, `[blocks, size, size]`.
    fn blocks(&self) -> Tensor<3> {
        if let Some(blocks) = &self.steady {
            return blocks.clone();
        }
        let skew = self.skew.matrices(self.rotation.val());
        match self.neumann_terms {
            0 => cayley(skew),
            terms => cayley_neumann(skew, terms),
        }
    }
}

/// Which entry above the diagonal stands where in a skew-symmetric matrix, and with which sign: the
/// same in every pass, so that nothing is moved to the device again.
#[derive(Module, Debug)]
struct Skew {
    /// `[size * size]`
    places: Tensor<1, Int>,
    /// `[size * size]`
    signs: Tensor<1>,
    size: usize,
}

impl Skew {
    fn new(size: usize, device: &Device) -> Self {
        // Entry (row, column) above the diagonal: the rows before it, then its place in its own.
        let index = |row: usize, column: usize| row * (2 * size - row - 1) / 2 + column - row - 1;
        let (mut places, mut signs) = (vec![0i32; size * size], vec![0f32; size * size]);
        for row in 0..size {
            for column in row + 1..size {
                let at = index(row, column) as i32;
                (places[row * size + column], signs[row * size + column]) = (at, 1.0);
                (places[column * size + row], signs[column * size + row]) = (at, -1.0);
            }
        }
        Self {
            places: Tensor::from_data(TensorData::new(places, [size * size]), device),
            signs: Tensor::from_data(TensorData::new(signs, [size * size]), device),
            size,
        }
    }

    /// Skew-symmetric matrices from the entries above their diagonals.
    fn matrices(&self, entries: Tensor<2>) -> Tensor<3> {
        let ([blocks, _], size) = (entries.dims(), self.size);
        let full = entries.select(1, self.places.clone()) * self.signs.clone().unsqueeze();
        full.reshape([blocks, size, size])
    }
}

impl Reweighted for OftLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.base.forward(apply_blocks(x, self.blocks()), pass)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        turned_rows(self.base.weight(pass), self.blocks())
    }

    fn steady(&self, _pass: &Pass<'_>) -> Option<Proj> {
        Some(Proj::new(Self {
            steady: Some(self.blocks().detach()),
            ..self.clone()
        }))
    }
}

#[cfg(test)]
mod tests;
