//! The loss over plain slices, part by part.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use rayon::prelude::*;

use super::{Grad, LossAndGrads, Wanted};
use crate::product::{self, Start, View, ViewMut};
use crate::{flex, simd};

/// Most logits that exist at once: 128 MB. The head's weight is copied into the order of the product
/// for every part, which 166 rows of a vocabulary of 50,000 did not pay for: half the speed of 500.
pub const MOST_LOGITS: usize = 1 << 25;

pub(super) fn loss_and_grads(
    hidden: FlexTensor,
    weight: FlexTensor,
    targets: FlexTensor,
    wanted: Wanted,
) -> LossAndGrads<Flex> {
    let [n, _] = flex::rows(hidden.layout().shape());
    let vocab = weight.layout().shape()[1];
    let targets = classes(targets, vocab);
    let (hidden, weight) = (flex::as_rows(hidden), flex::forward_strides(weight));
    let mut grads = Gradients::new(&hidden, &weight, wanted);
    let (hidden, weight) = (flex::matrix(&hidden), flex::matrix(&weight));

    let parts = n.div_ceil((MOST_LOGITS / vocab.max(1)).clamp(1, n));
    let part = n.div_ceil(parts);
    let share = 1.0 / n as f32;
    let mut loss = 0.0;
    for (i, targets) in targets.chunks(part).enumerate() {
        let hidden = hidden.row_range(i * part, targets.len());
        let mut logits = product::product(Start::Zero, hidden, &weight);
        if wanted.hidden || wanted.weight {
            loss += rows_loss(&mut logits, targets, vocab, |row, target, log_sum| {
                simd::softmax_scaled(row, log_sum, share);
                row[target] -= share;
            });
            grads.add_part(View::rows(&logits, vocab), hidden, weight);
        } else {
            loss += rows_loss(&mut logits, targets, vocab, |_, _, _| ());
        }
    }
    let loss = flex::tensor(vec![(loss / n as f64) as f32], Shape::new([1]));
    grads.finish(loss)
}

/// A gradient times one number: nothing to do for 1, which is what a training loop passes.
pub(super) fn scaled(grad: FlexTensor, factor: FlexTensor) -> FlexTensor {
    let factor = flex::slice(&flex::contiguous(factor))[0];
    if factor == 1.0 {
        return grad;
    }
    // Element-wise operations are slow on a transposed view, and would return a copy of it.
    if grad.is_contiguous() {
        Flex::float_mul_scalar(grad, factor.into())
    } else {
        Flex::float_mul_scalar(grad.transpose(0, 1), factor.into()).transpose(0, 1)
    }
}

/// The sum of the rows' losses; `turn` then makes something else of each row's logits.
fn rows_loss(
    logits: &mut [f32],
    targets: &[usize],
    vocab: usize,
    turn: impl Fn(&mut [f32], usize, f32) + Sync,
) -> f64 {
    let row_loss = |(row, &target): (&mut [f32], &usize)| {
        let log_sum = simd::log_sum_exp(row);
        let loss = f64::from(log_sum - row[target]);
        turn(row, target, log_sum);
        loss
    };
    let rows = logits.par_chunks_exact_mut(vocab).zip(targets);
    let losses: Vec<f64> = rows.map(row_loss).collect();
    losses.iter().sum()
}

/// The gradients wanted, filled part by part.
struct Gradients {
    wanted: Wanted,
    hidden: Vec<f32>,
    weight: Vec<f32>,
    d: usize,
    vocab: usize,
    /// Whether the weight is a transposed view. Its gradient takes the same layout, so that the
    /// gradient of a tied embedding comes out without a copy.
    transposed: bool,
}

impl Gradients {
    fn new(hidden: &FlexTensor, weight: &FlexTensor, wanted: Wanted) -> Self {
        let [n, d] = flex::rows(hidden.layout().shape());
        let strides = weight.layout().strides();
        Self {
            wanted,
            hidden: Vec::with_capacity(if wanted.hidden { n * d } else { 0 }),
            weight: Vec::new(),
            d,
            vocab: weight.layout().shape()[1],
            transposed: strides[0] < strides[1],
        }
    }

    fn add_part(&mut self, d_logits: View<'_>, hidden: View<'_>, weight: View<'_>) {
        if self.wanted.hidden {
            let part = product::product(Start::Zero, d_logits, &weight.t());
            self.hidden.extend_from_slice(&part);
        }
        if self.wanted.weight {
            let (left, right) = match self.transposed {
                true => (d_logits.t(), hidden),
                false => (hidden.t(), d_logits),
            };
            if self.weight.is_empty() {
                self.weight = product::product(Start::Zero, left, &right);
            } else {
                let [_, width] = right.shape();
                let out = ViewMut::rows(&mut self.weight, width);
                product::multiply(out, Start::Out, left, &right);
            }
        }
    }

    fn finish(self, loss: FlexTensor) -> LossAndGrads<Flex> {
        let Self { d, vocab, .. } = self;
        let matrix = |grad: Vec<f32>, rows, cols| flex::tensor(grad, Shape::new([rows, cols]));
        let hidden = match self.wanted.hidden {
            true => {
                let rows = self.hidden.len() / d.max(1);
                Grad::Computed(matrix(self.hidden, rows, d))
            }
            false => Grad::Unwanted,
        };
        let weight = match (self.wanted.weight, self.transposed) {
            (true, true) => Grad::Computed(matrix(self.weight, vocab, d).transpose(0, 1)),
            (true, false) => Grad::Computed(matrix(self.weight, d, vocab)),
            (false, _) => Grad::Unwanted,
        };
        LossAndGrads {
            loss,
            hidden,
            weight,
        }
    }
}

/// The targets as indices, checked.
fn classes(targets: FlexTensor, vocab: usize) -> Vec<usize> {
    let targets = flex::contiguous(targets);
    let check = |target: i64| match usize::try_from(target) {
        Ok(class) if class < vocab => class,
        _ => panic!("target `{target}` is out of range, expected 0..{vocab}"),
    };
    match targets.dtype() {
        DType::I64 => {
            let values = targets.as_slice::<i64>().expect("contiguous");
            values.iter().map(|&t| check(t)).collect()
        }
        DType::I32 => {
            let values = targets.as_slice::<i32>().expect("contiguous");
            values.iter().map(|&t| check(i64::from(t))).collect()
        }
        other => panic!("`targets` have type {other:?}, expected I64 or I32"),
    }
}
