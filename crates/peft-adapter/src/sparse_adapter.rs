//! Sparse adapters: wide bottlenecks of which most weights are pruned before training starts.
//!
//! Paper: He et al. 2022, "SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of
//! Adapters", arXiv 2210.04284.
//! Seam: sublayers, and for `pruning = "snip"` a look at the data. Houlsby's
//! `y' = y + up(f(down(y)))` where of each matrix only the entries that survive are kept and trained,
//! the same share of every matrix. Which those are follows from `mask_seed` alone, so that an adapter
//! folder need not hold them; those that SNIP found it holds.

mod matrix;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    Activation, CoreError, Geometry, Init, Looked, Method, MethodConfig, MethodInfo, Pass, Preview,
    Role, Slope, Start, Sublayer, Tap, TapSlot, check, kernels,
};
use serde::{Deserialize, Serialize};

use crate::adapter::Kind;
use crate::bottleneck::{Bottleneck, Layers};
use crate::houlsby::HoulsbyKind;

pub use matrix::SparseMatrix;
use matrix::{Kept, MOST_ENTRIES};

/// Configuration of sparse adapters, `kind = "sparse_adapter"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseAdapter {
    /// Width of the bottlenecks.
    pub bottleneck: usize,
    /// Share of every matrix that is pruned.
    pub sparsity: f64,
    /// Which entries survive.
    pub pruning: Pruning,
    /// Seed of the weights before pruning, and so of what survives it.
    pub mask_seed: u64,
    /// Batches of training data that SNIP looks at.
    pub batches: usize,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's output while training.
    pub dropout: f64,
    /// What a look found; from then on part of the model.
    #[serde(skip)]
    found: Found,
}

/// The entries that survive of every matrix, by its number.
#[derive(Clone, Default, PartialEq)]
struct Found(Arc<HashMap<usize, Vec<usize>>>);

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in {} matrices", self.0.len())
    }
}

/// Which entries of a matrix survive pruning at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pruning {
    /// Any.
    Random,
    /// The largest.
    Magnitude,
    /// Those on which the loss depends most, by gradient times weight (Lee et al. 2019, arXiv
    /// 1810.02340).
    Snip,
}

impl Default for SparseAdapter {
    fn default() -> Self {
        Self {
            bottleneck: 64,
            sparsity: 0.8,
            pruning: Pruning::Magnitude,
            mask_seed: 0,
            batches: 1,
            non_linearity: Activation::Relu,
            dropout: 0.0,
            found: Found::default(),
        }
    }
}

/// The sublayers with an adapter, and the names of its matrices.
const SUBLAYERS: [Role; 2] = [Role::AfterAttention, Role::AfterMlp];
const MATRICES: [&str; 2] = ["down", "up"];

/// The number of a matrix, by its layer and its places in [`SUBLAYERS`] and [`MATRICES`].
fn number(layer: usize, sublayer: usize, matrix: usize) -> usize {
    4 * layer + 2 * sublayer + matrix
}

impl SparseAdapter {
    /// How many entries of a matrix survive.
    fn kept(&self, d: usize) -> usize {
        let entries = (d * self.bottleneck) as f64;
        // At least one, also where rounding would take the last.
        (((1.0 - self.sparsity) * entries).round() as usize).max(1)
    }

    /// The adapter before pruning.
    fn whole(&self) -> Self {
        Self {
            sparsity: 0.0,
            pruning: Pruning::Random,
            dropout: 0.0,
            found: Found::default(),
            ..self.clone()
        }
    }
}

impl MethodConfig for SparseAdapter {
    const INFO: MethodInfo = MethodInfo {
        kind: "sparse_adapter",
        name: "SparseAdapter",
        paper: "He et al. 2022, arXiv 2210.04284",
        seam: "sublayers: attention, feed-forward; with `snip` a look at the data",
        formula: "2 (2 (1 - s) m d + d + m) per layer",
        start: Start::Near(0.05),
        mergeable: false,
        size_key: Some("bottleneck"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Self {
                bottleneck: 6,
                ..Self::default()
            },
            Self {
                bottleneck: 5,
                sparsity: 0.5,
                pruning: Pruning::Random,
                mask_seed: 3,
                ..Self::default()
            },
            Self {
                bottleneck: 4,
                sparsity: 0.6,
                pruning: Pruning::Snip,
                ..Self::default()
            },
            Self {
                bottleneck: 2,
                sparsity: 0.0,
                non_linearity: Activation::Gelu,
                ..Self::default()
            },
        ]
    }
}

impl Method for SparseAdapter {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::size("bottleneck", self.bottleneck)?;
        check::size("batches", self.batches)?;
        let most = MOST_ENTRIES / geometry.width.max(1);
        if self.pruning == Pruning::Snip && self.bottleneck > most {
            let expected = format!("at most {most} with `pruning` by `snip`");
            return Err(CoreError::bad_value(
                "bottleneck",
                self.bottleneck,
                &expected,
            ));
        }
        check::dropout(self.dropout)?;
        match (0.0..1.0).contains(&self.sparsity) {
            true => Ok(()),
            false => {
                let expected = "at least 0 and below 1";
                Err(CoreError::bad_value("sparsity", self.sparsity, expected))
            }
        }
    }

    fn looks_at(&self) -> usize {
        match self.pruning {
            Pruning::Snip => self.batches,
            Pruning::Random | Pruning::Magnitude => 0,
        }
    }

    fn look(
        &self,
        geometry: &Geometry,
        preview: &dyn Preview,
    ) -> Result<Option<Looked>, CoreError> {
        let slopes = preview.slopes(&self.whole())?;
        let slopes: HashMap<&str, &Slope> = slopes.iter().map(|s| (&*s.place, s)).collect();
        let mut found = HashMap::new();
        for tap in &geometry.taps {
            let Some(sublayer) = SUBLAYERS.iter().position(|role| *role == tap.role) else {
                continue;
            };
            for (at, matrix) in MATRICES.iter().enumerate() {
                let place = format!("{}/{matrix}.values", tap.path);
                let Some(slope) = slopes.get(&*place) else {
                    let expected = "a gradient at the start, for SNIP to go by";
                    return Err(CoreError::bad_value(&place, "without", expected));
                };
                let kept = matrix::salient(slope, self.kept(geometry.width))?;
                found.insert(number(tap.layer, sublayer, at), kept);
            }
        }
        Ok(Some(Looked::new(Self {
            found: Found(Arc::new(found)),
            ..self.clone()
        })))
    }

    fn tap(&self, layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        let sublayer = SUBLAYERS.iter().position(|r| *r == role)?;
        let m = self.bottleneck;
        let matrix = |at: usize, shape: [usize; 2]| {
            let place = number(layer, sublayer, at);
            // Seeds far apart, so that no two matrices of neighbouring seeds are alike.
            let seed = self.mask_seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ place as u64;
            let mut own = Init::new(seed, init.device());
            let kept = match (self.pruning, self.found.0.get(&place)) {
                (Pruning::Random, _) => Kept::Random(self.kept(d)),
                (Pruning::Magnitude, _) => Kept::Largest(self.kept(d)),
                (Pruning::Snip, Some(found)) => Kept::Found(found),
                // Without a look, for entries that are about to be put in.
                (Pruning::Snip, None) => Kept::ToBeFound(self.kept(d)),
            };
            SparseMatrix::pruned(shape, kept, &mut own)
        };
        Some(TapSlot::new(SparseBottleneck {
            down: matrix(0, [d, m]),
            down_bias: Param::from_tensor(init.zeros([m])),
            up: matrix(1, [m, d]),
            up_bias: Param::from_tensor(init.zeros([d])),
            dropout: DropoutConfig::new(self.dropout).init(),
            non_linearity: self.non_linearity,
        }))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let d = geometry.width;
        geometry.layers * 2 * (2 * self.kept(d) + d + self.bottleneck)
    }

    fn size(&self) -> Option<u64> {
        Some(self.bottleneck as u64)
    }
}

/// A bottleneck with a residual whose matrices are sparse.
#[derive(Module, Debug)]
pub struct SparseBottleneck {
    down: SparseMatrix,
    /// `[m]`
    down_bias: Param<Tensor<1>>,
    up: SparseMatrix,
    /// `[d]`
    up_bias: Param<Tensor<1>>,
    dropout: Dropout,
    #[module(skip)]
    non_linearity: Activation,
}

impl Tap for SparseBottleneck {
    fn forward(&self, sublayer: Sublayer<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        let h = kernels::linear(y.clone(), self.down.weight(), Some(self.down_bias.val()));
        let h = self.non_linearity.forward(h);
        let u = kernels::linear(h, self.up.weight(), Some(self.up_bias.val()));
        self.dropout.forward(u) + y
    }

    fn settled(&self, _pass: &Pass<'_>) -> Option<TapSlot> {
        let layers = Layers {
            down: self.down.weight().detach(),
            down_bias: self.down_bias.val().detach(),
            up: self.up.weight().detach(),
            up_bias: self.up_bias.val().detach(),
        };
        let plain = Bottleneck::of(layers, self.non_linearity, (None, 1.0));
        Some(HoulsbyKind::slot(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use peft_core::{Host, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(SparseAdapter);

    #[test]
    fn all_or_more_pruned_is_refused_by_name() {
        let toy = Toy::build(&mut Init::new(0, &Device::flex())).geometry();
        for sparsity in [1.0, -0.1, f64::NAN] {
            let method = SparseAdapter {
                sparsity,
                ..SparseAdapter::default()
            };
            let error = method.check(&toy).unwrap_err().to_string();
            assert!(error.contains("`sparsity` is"), "{error}");
        }
        // Four bottlenecks of width 64 in a model of width 8.
        let parameters = SparseAdapter::default().parameters(&toy);
        assert_eq!(parameters, 4 * (2 * 102 + 8 + 64));
    }
}
