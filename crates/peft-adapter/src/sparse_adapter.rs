//! Sparse adapters: wide bottlenecks of which most weights are pruned before training starts.
//!
//! Paper: He et al. 2022, "SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of
//! Adapters", arXiv 2210.04284.
//! Seam: sublayers. Houlsby's `y' = y + up(f(down(y)))` where of each matrix only the entries that
//! survive are kept and trained, the same share of every matrix. Which those are follows from
//! `mask_seed` alone, so that an adapter folder need not hold them.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role, Start,
    Sublayer, Tap, TapSlot, check, kernels,
};
use serde::{Deserialize, Serialize};

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
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's output while training.
    pub dropout: f64,
}

/// Which entries of a matrix survive pruning at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pruning {
    /// Any.
    Random,
    /// The largest.
    Magnitude,
}

impl Default for SparseAdapter {
    fn default() -> Self {
        Self {
            bottleneck: 64,
            sparsity: 0.8,
            pruning: Pruning::Magnitude,
            mask_seed: 0,
            non_linearity: Activation::Relu,
            dropout: 0.0,
        }
    }
}

impl SparseAdapter {
    /// How many entries of a matrix survive.
    fn kept(&self, d: usize) -> usize {
        let entries = (d * self.bottleneck) as f64;
        // At least one, also where rounding would take the last.
        (((1.0 - self.sparsity) * entries).round() as usize).max(1)
    }
}

impl MethodConfig for SparseAdapter {
    const INFO: MethodInfo = MethodInfo {
        kind: "sparse_adapter",
        name: "SparseAdapter",
        paper: "He et al. 2022, arXiv 2210.04284",
        seam: "sublayers: attention, feed-forward",
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
                bottleneck: 2,
                sparsity: 0.0,
                non_linearity: Activation::Gelu,
                ..Self::default()
            },
        ]
    }
}

impl Method for SparseAdapter {
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        check::size("bottleneck", self.bottleneck)?;
        check::dropout(self.dropout)?;
        match (0.0..1.0).contains(&self.sparsity) {
            true => Ok(()),
            false => {
                let expected = "at least 0 and below 1";
                Err(CoreError::bad_value("sparsity", self.sparsity, expected))
            }
        }
    }

    fn tap(&self, layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        let sublayer = [Role::AfterAttention, Role::AfterMlp]
            .iter()
            .position(|r| *r == role)?;
        let m = self.bottleneck;
        let matrix = |number: usize, shape: [usize; 2]| {
            let place = 4 * layer + 2 * sublayer + number;
            // Seeds far apart, so that no two matrices of neighbouring seeds are alike.
            let seed = self.mask_seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ place as u64;
            let mut own = Init::new(seed, init.device());
            SparseMatrix::pruned(shape, self.kept(d), self.pruning, &mut own)
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

/// Standard deviation of the weights before pruning, as in BERT.
const STD: f64 = 0.02;

/// A matrix of which only some entries are kept.
#[derive(Module, Debug)]
pub struct SparseMatrix {
    /// `[kept]`
    values: Param<Tensor<1>>,
    /// Where they stand, row by row, `[kept]`.
    places: Param<Tensor<1, Int>>,
    rows: usize,
    columns: usize,
}

impl SparseMatrix {
    fn pruned(shape: [usize; 2], kept: usize, pruning: Pruning, init: &mut Init) -> Self {
        let values = |t: Tensor<2>| -> Vec<f32> {
            let data = t.into_data().convert::<f32>();
            data.try_to_vec().expect("floats")
        };
        let weights = values(init.normal(shape, STD));
        let scores = match pruning {
            Pruning::Magnitude => weights.clone(),
            Pruning::Random => values(init.uniform(shape, 1.0)),
        };
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|a, b| scores[*b].abs().total_cmp(&scores[*a].abs()));
        order.truncate(kept);
        order.sort_unstable();
        let values: Vec<f32> = order.iter().map(|at| weights[*at]).collect();
        let places: Vec<i64> = order.iter().map(|at| *at as i64).collect();
        let device = init.device();
        let (values, places) = (
            Tensor::from_data(TensorData::new(values, [kept]), device),
            Tensor::from_data(TensorData::new(places, [kept]), device),
        );
        let [rows, columns] = shape;
        Self {
            values: Param::from_tensor(values),
            places: Param::initialized(burn::module::ParamId::new(), places),
            rows,
            columns,
        }
    }

    /// The whole matrix, zeros where entries were pruned.
    fn weight(&self) -> Tensor<2> {
        let values = self.values.val();
        let zeros = Tensor::<1>::zeros([self.rows * self.columns], &values.device());
        let add = IndexingUpdateOp::Add;
        let flat = zeros.select_assign(0, self.places.val(), values, add);
        flat.reshape([self.rows, self.columns])
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use peft_core::{Host, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(SparseAdapter);

    fn floats<const D: usize>(t: Tensor<D>) -> Vec<f32> {
        t.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn magnitude_keeps_the_largest_entries_where_they_stood() {
        let whole = floats(Init::new(5, &Device::flex()).normal([7, 9], STD));
        let mut init = Init::new(5, &Device::flex());
        let pruned = SparseMatrix::pruned([7, 9], 12, Pruning::Magnitude, &mut init);
        let mut sizes: Vec<f32> = whole.iter().map(|w| w.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let least = sizes[sizes.len() - 12];
        let expected: Vec<f32> = whole
            .iter()
            .map(|w| if w.abs() >= least { *w } else { 0.0 })
            .collect();
        assert_eq!(floats(pruned.weight()), expected);
    }

    #[test]
    fn random_pruning_keeps_as_many_entries_of_any_size_and_the_seed_says_which() {
        let make = |seed| {
            let mut init = Init::new(seed, &Device::flex());
            floats(SparseMatrix::pruned([20, 20], 80, Pruning::Random, &mut init).weight())
        };
        let kept: Vec<f32> = make(1).into_iter().filter(|w| *w != 0.0).collect();
        assert_eq!(kept.len(), 80);
        // Magnitude would keep nothing below the deviation times 1.28.
        assert!(kept.iter().any(|w| w.abs() < 0.01));
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn the_gradient_of_a_kept_entry_is_that_of_its_place_in_the_whole_matrix() {
        let mut init = Init::new(5, &Device::flex().autodiff());
        let matrix = SparseMatrix::pruned([3, 4], 5, Pruning::Random, &mut init);
        let factors = init.normal([3, 4], 1.0);
        let loss = (matrix.weight() * factors.clone()).sum();
        let gradient = floats(matrix.values.val().grad(&loss.backward()).unwrap());
        let factors = floats(factors);
        let places = matrix.places.val().into_data().convert::<i64>();
        let places: Vec<i64> = places.try_to_vec().unwrap();
        let expected: Vec<f32> = places.iter().map(|at| factors[*at as usize]).collect();
        assert_eq!(gradient, expected);
    }

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
