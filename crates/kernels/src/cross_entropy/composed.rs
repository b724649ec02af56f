//! The loss in terms of a backend's own operations, part by part.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{IndexingUpdateOp, Shape, Slice};

use super::{Grad, LossAndGrads, Wanted};

/// Logits that exist at once, about: 256 MB in `f32`.
const LOGITS: usize = 1 << 26;

pub(super) fn loss_and_grads<B: Backend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
    wanted: Wanted,
) -> LossAndGrads<B> {
    let [n, vocab] = [hidden.shape()[0], weight.shape()[1]];
    let part = (LOGITS / vocab.max(1)).max(1);
    let (mut losses, mut d_hidden, mut d_weight) = (Vec::new(), Vec::new(), None);
    for start in (0..n).step_by(part) {
        let rows = Slice::from(start..n.min(start + part));
        let hidden = B::float_slice(hidden.clone(), &[rows, Slice::from(..)]);
        let targets = B::int_slice(targets.clone(), &[rows]);
        let logits = B::float_matmul(hidden.clone(), weight.clone());
        let (loss, d_logits) = part_loss::<B>(logits, targets, n);
        losses.push(loss);
        if wanted.hidden {
            let weight = B::float_transpose(weight.clone());
            d_hidden.push(B::float_matmul(d_logits.clone(), weight));
        }
        if wanted.weight {
            let grad = B::float_matmul(B::float_transpose(hidden), d_logits);
            d_weight = Some(match d_weight {
                Some(sum) => B::float_add(sum, grad),
                None => grad,
            });
        }
    }
    LossAndGrads {
        loss: B::float_sum(B::float_cat(losses, 0)),
        hidden: if wanted.hidden {
            Grad::Computed(B::float_cat(d_hidden, 0))
        } else {
            Grad::Unwanted
        },
        weight: d_weight.map_or(Grad::Unwanted, Grad::Computed),
    }
}

/// A gradient times the one element of `factor`.
pub(super) fn scaled<B: Backend>(grad: FloatTensor<B>, factor: FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(grad, B::float_reshape(factor, Shape::new([1, 1])))
}

/// This part's share of the mean over `n` rows, and the gradient for its logits.
fn part_loss<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    n: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let rows = logits.shape()[0];
    let share = 1.0 / n as f64;
    let targets = B::int_reshape(targets, Shape::new([rows, 1]));
    let max = B::float_max_dim(logits.clone(), 1);
    let shifted = B::float_sub(logits, max);
    let log_sum = B::float_log(B::float_sum_dim(B::float_exp(shifted.clone()), 1));
    let right = B::float_gather(1, shifted.clone(), targets.clone());
    let loss = B::float_sum(B::float_sub(log_sum.clone(), right.clone()));
    let p = B::float_exp(B::float_sub(shifted, log_sum));
    // The same number of elements as `right`, all minus one.
    let minus = B::float_add_scalar(B::float_mul_scalar(right, 0.0.into()), (-1.0).into());
    let grad = B::float_scatter(1, p, targets, minus, IndexingUpdateOp::Add);
    let loss = B::float_reshape(loss, Shape::new([1]));
    (
        B::float_mul_scalar(loss, share.into()),
        B::float_mul_scalar(grad, share.into()),
    )
}
