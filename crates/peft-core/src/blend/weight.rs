//! By how much a part of a mixture takes part.

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::pass::{Pass, Text};

/// By how much one of several adapters takes part at a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Weight {
    /// The same everywhere.
    Fixed(f64),
    /// Wholly at the tokens of a row from `from` to below `to`, padding not counted, and not at all
    /// elsewhere.
    Tokens {
        /// The first of its tokens, counted from 0.
        from: usize,
        /// The first token that is not.
        to: usize,
    },
    /// Wholly in the rows of this task, and not at all in others.
    Task(usize),
}

impl Weight {
    /// Whether it goes by the place of a token in its row, or by the row.
    pub fn is_by_place(&self) -> bool {
        !matches!(self, Weight::Fixed(_))
    }

    /// The weight where it is the same everywhere. Only such adapters have a weight matrix of their
    /// own, virtual tokens of their own, or can be merged.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn fixed(self) -> f64 {
        match self {
            Weight::Fixed(weight) => weight,
            other => panic!("{other:?} is no weight of a matrix"),
        }
    }

    /// What the adapter changes, `[batch, sequence, d]`, times its weight.
    pub(crate) fn on(self, change: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        match self {
            Weight::Fixed(1.0) => change,
            Weight::Fixed(weight) => change.mul_scalar(weight),
            Weight::Tokens { from, to } => {
                let [_, sequence, _] = change.dims();
                let numbers = numbers(&pass.text(), sequence, &change.device());
                let from = numbers.clone().greater_equal_elem(from as f32).float();
                let before = numbers.lower_elem(to as f32).float();
                change * (from * before).unsqueeze_dim::<3>(2)
            }
            Weight::Task(task) => match pass.text().tasks {
                Some(tasks) => change * rows_of(tasks, task),
                // All are of task 0.
                None if task == 0 => change,
                None => change.mul_scalar(0.0),
            },
        }
    }
}

/// The numbers of the last tokens of every row, padding not counted, `[batch, sequence]`; one row for
/// all where nothing is padded.
fn numbers(text: &Text, sequence: usize, device: &Device) -> Tensor<2> {
    match &text.mask {
        Some(mask) => {
            let [_, keys] = mask.dims();
            let last = keys.saturating_sub(sequence);
            mask.clone().cumsum(1).narrow(1, last, sequence) - 1.0
        }
        None => {
            let numbers = (0..sequence).map(|at| (text.seen + at) as f32).collect();
            Tensor::from_data(TensorData::new(numbers, [1, sequence]), device)
        }
    }
}

/// 1 in the rows of a task and 0 in the others, `[batch, 1, 1]`.
fn rows_of(tasks: Tensor<1, Int>, task: usize) -> Tensor<3> {
    let [rows] = tasks.dims();
    tasks.equal_elem(task as i64).float().reshape([rows, 1, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_behind_the_cache_and_without_padding() {
        let device = Device::flex();
        let weights = |mask: Option<Tensor<2>>, seen: usize| -> Vec<f32> {
            let pass = Pass::new();
            pass.see(Text {
                mask,
                seen,
                ..Text::default()
            });
            let weight = Weight::Tokens { from: 1, to: 3 };
            let ones = Tensor::ones([2, 3, 1], &device);
            weight.on(ones, &pass).into_data().try_to_vec().unwrap()
        };
        assert_eq!(weights(None, 0), [0., 1., 1., 0., 1., 1.]);
        assert_eq!(weights(None, 2), [1., 0., 0., 1., 0., 0.]);
        // The second row is padded on the left, and one token of both is in a cache.
        let mask = Tensor::from_data([[1., 1., 1., 1.], [0., 0., 1., 1.]], &device);
        assert_eq!(weights(Some(mask), 1), [1., 1., 0., 0., 0., 1.]);
    }
}
