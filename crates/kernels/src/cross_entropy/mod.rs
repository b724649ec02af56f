//! The loss of a language model's head, without ever holding all of its logits.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, ExtensionType, Flex, NdArray, backend_extension};
use burn::tensor::{Int, Tensor};

mod composed;
mod fused;

pub use fused::MOST_LOGITS;
#[cfg(test)]
mod tests;

/// Mean cross entropy of the logits `hidden @ weight` against `targets`.
///
/// Logits are computed for a part of the rows at a time, and the gradients along with the loss,
/// so that the `[n, vocab]` matrix never exists as a whole and is never computed twice.
///
/// # Shapes
///
/// - hidden: `[n, d]`, only the positions that carry loss
/// - weight: `[d, vocab]`, in any strides (a tied embedding is passed as a transposed view)
/// - targets: `[n]`, each in `0..vocab`
/// - result: `[1]`
///
/// # Panics
///
/// When shapes do not fit together, there is no row, or (on the CPU) a target is not in `0..vocab`.
pub fn cross_entropy_head(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    let [n, d] = hidden.dims();
    let [d_weight, _] = weight.dims();
    let [n_targets] = targets.dims();
    assert!(
        n > 0,
        "`hidden` has no rows, expected at least one position that carries loss"
    );
    assert_eq!(
        d_weight, d,
        "`weight` has {d_weight} rows, expected `d` = {d} of `hidden`"
    );
    assert_eq!(
        n_targets, n,
        "`targets` has {n_targets} elements, expected one for each of {n} rows"
    );
    Tensor::from_dispatch(<Dispatch as CrossEntropyOps>::cross_entropy_mean(
        hidden.into_dispatch(),
        weight.into_dispatch(),
        targets.into_dispatch(),
    ))
}

/// Which gradients are to be computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    hidden: bool,
    weight: bool,
}

/// A gradient, if it was wanted.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) enum Grad<B: Backend> {
    Computed(FloatTensor<B>),
    Unwanted,
}

/// The loss and its gradients.
#[derive(ExtensionType)]
pub(crate) struct LossAndGrads<B: Backend> {
    loss: FloatTensor<B>,
    #[extension_type]
    hidden: Grad<B>,
    #[extension_type]
    weight: Grad<B>,
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait CrossEntropyOps: Backend {
    /// The mean loss, differentiable.
    fn cross_entropy_mean(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let nothing = Wanted {
            hidden: false,
            weight: false,
        };
        Self::cross_entropy_grads(hidden, weight, targets, nothing).loss
    }

    /// The mean loss and its gradients.
    fn cross_entropy_grads(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        wanted: Wanted,
    ) -> LossAndGrads<Self> {
        composed::loss_and_grads::<Self>(hidden, weight, targets, wanted)
    }

    /// A gradient times the one element of `factor`.
    fn cross_entropy_scaled(
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::scaled::<Self>(grad, factor)
    }
}

impl CrossEntropyOps for NdArray {}

#[cfg(feature = "cuda")]
impl CrossEntropyOps for burn::backend::Cube {}

impl CrossEntropyOps for Flex {
    fn cross_entropy_grads(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        wanted: Wanted,
    ) -> LossAndGrads<Self> {
        if crate::flex::all_f32(&[&hidden, &weight]) {
            fused::loss_and_grads(hidden, weight, targets, wanted)
        } else {
            composed::loss_and_grads::<Self>(hidden, weight, targets, wanted)
        }
    }

    fn cross_entropy_scaled(
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if crate::flex::all_f32(&[&grad, &factor]) {
            fused::scaled(grad, factor)
        } else {
            composed::scaled::<Self>(grad, factor)
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: CrossEntropyOps> Backward<B, 2> for CrossEntropyBackward {
    /// The gradients for a gradient of 1.
    type State = [Grad<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let factor = grads.consume::<B>(&ops.node);
        for (node, grad) in ops.parents.into_iter().zip(ops.state) {
            if let (Some(node), Grad::Computed(grad)) = (node, grad) {
                let grad = B::cross_entropy_scaled(grad, factor.clone());
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

impl<B: CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn cross_entropy_mean(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let wanted = Wanted {
            hidden: hidden.is_tracked(),
            weight: weight.is_tracked(),
        };
        let prep = CrossEntropyBackward
            .prepare::<C>([hidden.node(), weight.node()])
            .compute_bound()
            .stateful();
        let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
        let result = B::cross_entropy_grads(hidden, weight, targets, wanted);
        match prep {
            OpsKind::Tracked(prep) => prep.finish([result.hidden, result.weight], result.loss),
            OpsKind::UnTracked(prep) => prep.finish(result.loss),
        }
    }
}
