//! Matrices of which only some entries are kept.

use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use peft_core::{Buffer, CoreError, Init, Slope};

/// Standard deviation of the weights before pruning, as in BERT.
const STD: f64 = 0.02;

/// The most entries of a matrix whose numbers a file of 32-bit floats keeps exactly.
pub(super) const MOST_ENTRIES: usize = 1 << 24;

/// Which entries of a matrix are kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kept<'a> {
    /// So many, any.
    Random(usize),
    /// So many, the largest.
    Largest(usize),
    /// These, in ascending order, row by row.
    Found(&'a [usize]),
    /// So many, any until a file says which.
    ToBeFound(usize),
}

/// A matrix of which only some entries are kept.
#[derive(Module, Debug)]
pub struct SparseMatrix {
    /// `[kept]`
    values: Param<Tensor<1>>,
    places: Places,
    rows: usize,
    columns: usize,
}

/// Where the kept entries stand, row by row.
#[derive(Module, Debug)]
enum Places {
    /// `[kept]`, drawn with the weights and so made again with them.
    Drawn(Param<Tensor<1, Int>>),
    /// `[1, kept]`, found in data and so kept with the adapter.
    Found(Buffer),
}

/// The entries on which the loss depends most, by gradient times weight, in ascending order.
pub(super) fn salient(slope: &Slope, kept: usize) -> Result<Vec<usize>, CoreError> {
    let pairs = slope.value.iter::<f32>().zip(slope.gradient.iter::<f32>());
    let scores: Vec<f32> = pairs.map(|(value, gradient)| value * gradient).collect();
    if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
        let key = format!("gradient at {}", slope.place);
        return Err(CoreError::bad_value(&key, score, "finite numbers"));
    }
    Ok(largest(&scores, kept))
}

/// The numbers of the entries of the largest magnitude, in ascending order.
fn largest(scores: &[f32], kept: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].abs().total_cmp(&scores[*a].abs()));
    order.truncate(kept);
    order.sort_unstable();
    order
}

impl SparseMatrix {
    /// A matrix of weights from this source, pruned.
    pub(super) fn pruned(shape: [usize; 2], kept: Kept<'_>, init: &mut Init) -> Self {
        let values = |t: Tensor<2>| -> Vec<f32> {
            let data = t.into_data().convert::<f32>();
            data.try_to_vec().expect("floats")
        };
        let weights = values(init.normal(shape, STD));
        let order = match kept {
            Kept::Random(kept) => largest(&values(init.uniform(shape, 1.0)), kept),
            Kept::Largest(kept) | Kept::ToBeFound(kept) => largest(&weights, kept),
            Kept::Found(found) => found.to_vec(),
        };
        let count = order.len();
        let values: Vec<f32> = order.iter().map(|at| weights[*at]).collect();
        let values = Tensor::from_data(TensorData::new(values, [count]), init.device());
        let [rows, columns] = shape;
        Self {
            values: Param::from_tensor(values),
            places: Places::new(kept, order, init),
            rows,
            columns,
        }
    }

    /// The whole matrix, zeros where entries were pruned.
    pub(super) fn weight(&self) -> Tensor<2> {
        let values = self.values.val();
        let entries = self.rows * self.columns;
        let zeros = Tensor::<1>::zeros([entries], &values.device());
        let add = IndexingUpdateOp::Add;
        let flat = zeros.select_assign(0, self.places.numbers(entries), values, add);
        flat.reshape([self.rows, self.columns])
    }
}

impl Places {
    fn new(kept: Kept<'_>, order: Vec<usize>, init: &Init) -> Self {
        let (count, device) = (order.len(), init.device());
        match kept {
            Kept::Random(_) | Kept::Largest(_) => {
                let places: Vec<i64> = order.iter().map(|at| *at as i64).collect();
                let places = Tensor::from_data(TensorData::new(places, [count]), device);
                Self::Drawn(Param::initialized(burn::module::ParamId::new(), places))
            }
            Kept::Found(_) | Kept::ToBeFound(_) => {
                let places: Vec<f32> = order.iter().map(|at| *at as f32).collect();
                let places = Tensor::from_data(TensorData::new(places, [1, count]), device);
                Self::Found(Buffer::new(places))
            }
        }
    }

    /// `[kept]`, below the number of entries whatever a file says.
    fn numbers(&self, entries: usize) -> Tensor<1, Int> {
        match self {
            Self::Drawn(places) => places.val(),
            Self::Found(places) => {
                let places = places.val().squeeze_dim::<1>(0).int();
                places.clamp(0, entries as i64 - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn floats<const D: usize>(t: Tensor<D>) -> Vec<f32> {
        t.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn magnitude_keeps_the_largest_entries_where_they_stood() {
        let whole = floats(Init::new(5, &Device::flex()).normal([7, 9], STD));
        let mut init = Init::new(5, &Device::flex());
        let pruned = SparseMatrix::pruned([7, 9], Kept::Largest(12), &mut init);
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
            floats(SparseMatrix::pruned([20, 20], Kept::Random(80), &mut init).weight())
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
        let matrix = SparseMatrix::pruned([3, 4], Kept::Random(5), &mut init);
        let factors = init.normal([3, 4], 1.0);
        let loss = (matrix.weight() * factors.clone()).sum();
        let gradient = floats(matrix.values.val().grad(&loss.backward()).unwrap());
        let factors = floats(factors);
        let places = matrix.places.numbers(12).into_data().convert::<i64>();
        let places: Vec<i64> = places.try_to_vec().unwrap();
        let expected: Vec<f32> = places.iter().map(|at| factors[*at as usize]).collect();
        assert_eq!(gradient, expected);
    }

    #[test]
    fn found_entries_are_kept_where_they_were_found_and_a_file_cannot_place_them_outside() {
        let make = |kept| {
            let mut init = Init::new(5, &Device::flex());
            SparseMatrix::pruned([3, 4], kept, &mut init)
        };
        let whole = floats(make(Kept::Largest(12)).weight());
        let mut matrix = make(Kept::Found(&[1, 7, 11]));
        let expected = |at: usize| {
            if [1, 7, 11].contains(&at) {
                whole[at]
            } else {
                0.0
            }
        };
        let expected: Vec<f32> = (0..12).map(expected).collect();
        assert_eq!(floats(matrix.weight()), expected);
        let outside = Tensor::from_data([[-3.0, 7.0, 1e9]], &Device::flex());
        matrix.places = Places::Found(Buffer::new(outside));
        let moved = floats(matrix.weight());
        assert_eq!(
            [moved[0], moved[7], moved[11]],
            [whole[1], whole[7], whole[11]]
        );
    }

    #[test]
    fn an_entry_is_salient_by_what_gradient_and_weight_make_together() {
        let data = |values: [f32; 5]| TensorData::new(values.to_vec(), [5]);
        let slope = |gradient| Slope {
            place: "h.0/down.values".into(),
            value: data([5.0, 0.1, -3.0, 1.0, 0.0]),
            gradient: data(gradient),
        };
        // 0.5, 2, 3, 1, 0
        let found = salient(&slope([0.1, -20.0, 1.0, 1.0, 9.0]), 3).unwrap();
        assert_eq!(found, [1, 2, 3]);
        let error = salient(&slope([0.1, f32::NAN, 1.0, 1.0, 9.0]), 3).unwrap_err();
        assert!(
            error.to_string().contains("gradient at h.0/down.values"),
            "{error}"
        );
    }
}
