//! Normalisation by the root mean square.
//!
//! Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", arXiv 1910.07467.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::{buffer, flex, simd};

/// Normalisation over the last dimension, `x / sqrt(mean(x²) + eps) * gamma`.
///
/// # Shapes
///
/// - x and result: `[.., d]`
/// - gamma: `[d]`
///
/// # Panics
///
/// When `gamma` is not as long as the last dimension of `x`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, eps: f64) -> Tensor<D> {
    let (d, [length]) = (x.dims()[D - 1], gamma.dims());
    assert_eq!(
        length, d,
        "`gamma` has {length} elements, expected {d} like `x`"
    );
    Tensor::from_dispatch(<Dispatch as RmsNormOps>::rms_norm_affine(
        x.into_dispatch(),
        gamma.into_dispatch(),
        eps,
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait RmsNormOps: Backend {
    /// The normalisation, differentiable.
    fn rms_norm_affine(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        composed::forward::<Self>(x, gamma, eps)
    }

    /// The gradient for `x`.
    fn rms_norm_grad(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        composed::grad::<Self>(x, gamma, grad, eps)
    }

    /// The gradient for `gamma`.
    fn rms_norm_gamma_grad(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        composed::gamma_grad::<Self>(x, grad, eps)
    }
}

/// The operations in terms of a backend's own.
mod composed {
    use super::*;

    pub(super) fn forward<B: Backend>(
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        eps: f64,
    ) -> FloatTensor<B> {
        let shape = x.shape();
        let (normal, _) = normalise::<B>(x, eps);
        B::float_reshape(B::float_mul(normal, row::<B>(gamma)), shape)
    }

    pub(super) fn grad<B: Backend>(
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        grad: FloatTensor<B>,
        eps: f64,
    ) -> FloatTensor<B> {
        let shape = x.shape();
        let (normal, root) = normalise::<B>(x, eps);
        let grad = B::float_mul(matrix::<B>(grad), row::<B>(gamma));
        let along = B::float_mean_dim(B::float_mul(grad.clone(), normal.clone()), 1);
        let rest = B::float_sub(grad, B::float_mul(normal, along));
        B::float_reshape(B::float_div(rest, root), shape)
    }

    pub(super) fn gamma_grad<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        eps: f64,
    ) -> FloatTensor<B> {
        let [_, width] = flex::rows(&x.shape());
        let (normal, _) = normalise::<B>(x, eps);
        let sum = B::float_sum_dim(B::float_mul(matrix::<B>(grad), normal), 0);
        B::float_reshape(sum, Shape::new([width]))
    }

    /// The rows with a mean square of 1, and the roots of their mean squares.
    fn normalise<B: Backend>(x: FloatTensor<B>, eps: f64) -> (FloatTensor<B>, FloatTensor<B>) {
        let x = matrix::<B>(x);
        let square = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
        let root = B::float_sqrt(B::float_add_scalar(square, eps.into()));
        (B::float_div(x, root.clone()), root)
    }

    fn matrix<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let shape = Shape::new(flex::rows(&x.shape()));
        B::float_reshape(x, shape)
    }

    fn row<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let width = x.shape()[0];
        B::float_reshape(x, Shape::new([1, width]))
    }
}

impl RmsNormOps for NdArray {}

#[cfg(feature = "cuda")]
impl RmsNormOps for burn::backend::Cube {}

/// Rows that a thread takes at a time.
const ROWS: usize = 8;

impl RmsNormOps for Flex {
    fn rms_norm_affine(x: FlexTensor, gamma: FlexTensor, eps: f64) -> FlexTensor {
        if !flex::all_f32(&[&x, &gamma]) {
            return composed::forward::<Self>(x, gamma, eps);
        }
        let [x, gamma] = [x, gamma].map(flex::contiguous);
        let [values, gamma] = [&x, &gamma].map(flex::slice);
        let width = gamma.len().max(1);
        let y = buffer::fill_parts(values.len(), ROWS * width, |start, out| {
            let rows = values[start..].chunks_exact(width);
            for (out, x) in out.chunks_exact_mut(width).zip(rows) {
                simd::rms_norm_row(x, gamma, eps as f32, out);
            }
        });
        flex::tensor(y, x.layout().shape().clone())
    }

    fn rms_norm_grad(x: FlexTensor, gamma: FlexTensor, grad: FlexTensor, eps: f64) -> FlexTensor {
        if !flex::all_f32(&[&x, &gamma, &grad]) {
            return composed::grad::<Self>(x, gamma, grad, eps);
        }
        let [x, gamma, grad] = [x, gamma, grad].map(flex::contiguous);
        let [values, gamma, grads] = [&x, &gamma, &grad].map(flex::slice);
        let width = gamma.len().max(1);
        let dx = buffer::fill_parts(values.len(), ROWS * width, |start, out| {
            let rows = values[start..].chunks_exact(width);
            let rows = rows.zip(grads[start..].chunks_exact(width));
            for (out, (x, grad)) in out.chunks_exact_mut(width).zip(rows) {
                simd::rms_norm_row_backward(x, grad, gamma, eps as f32, out);
            }
        });
        flex::tensor(dx, x.layout().shape().clone())
    }

    fn rms_norm_gamma_grad(x: FlexTensor, grad: FlexTensor, eps: f64) -> FlexTensor {
        if !flex::all_f32(&[&x, &grad]) {
            return composed::gamma_grad::<Self>(x, grad, eps);
        }
        let [_, width] = flex::rows(x.layout().shape());
        let [x, grad] = [x, grad].map(flex::contiguous);
        let [values, grads] = [&x, &grad].map(flex::slice);
        let part = width.max(1) * flex::ROWS_A_SUM;
        let sums: Vec<_> = values
            .par_chunks(part)
            .zip(grads.par_chunks(part))
            .map(|(x, grad)| {
                let mut dgamma = vec![0.0; width];
                for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
                    simd::rms_norm_row_affine(x, grad, eps as f32, &mut dgamma);
                }
                dgamma
            })
            .collect();
        // Added in their order, not in that of the threads: the result must not depend on chance.
        let mut dgamma = vec![0.0; width];
        for part in &sums {
            simd::add_assign(&mut dgamma, part);
        }
        flex::tensor(dgamma, Shape::new([width]))
    }
}

#[derive(Debug)]
struct RmsNormBackward;

impl<B: RmsNormOps> Backward<B, 2> for RmsNormBackward {
    /// Input and gamma; the mean square is cheaper to compute again than to keep.
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, gamma_node] = ops.parents;
        let (x, gamma, eps) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = gamma_node {
            let dgamma = B::rms_norm_gamma_grad(x.clone(), grad.clone(), eps);
            grads.register::<B>(node.id, dgamma);
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::rms_norm_grad(x, gamma, grad, eps));
        }
    }
}

impl<B: RmsNormOps, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm_affine(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let prep = RmsNormBackward
            .prepare::<C>([x.node(), gamma.node()])
            .compute_bound()
            .stateful();
        let [x, gamma] = [x, gamma].map(|t| t.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let state = (x.clone(), gamma.clone(), eps);
                prep.finish(state, B::rms_norm_affine(x, gamma, eps))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rms_norm_affine(x, gamma, eps)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Case, leaf};
    use crate::{plain, rms_norm};

    #[test]
    fn values_and_gradients_match_the_plain_form() {
        for case in Case::all() {
            for shape in [[1, 1, 6], [2, 3, 5], [3, 7, 33], [2, 70, 9], [2, 9, 384]] {
                for trained in [true, false] {
                    let x = case.leaf(shape, true);
                    let gamma = case.leaf([shape[2]], trained);
                    let shifted = || x.clone() * 2 + 1;
                    let fused = rms_norm(shifted(), gamma.clone(), 1e-5);
                    let expected = plain::rms_norm(shifted(), gamma.clone(), 1e-5);
                    let leaves = [leaf(&x), leaf(&gamma)];
                    testing::assert_same(&case, fused, expected, &leaves, 1e-5);
                }
            }
        }
    }

    #[test]
    fn views_match_the_plain_form() {
        for case in Case::all() {
            let (x, gamma) = (case.leaf([4, 6, 5], true), case.leaf([4], true));
            let view = || x.clone().narrow(1, 1, 4).swap_dims(0, 2).swap_dims(1, 2);
            let fused = rms_norm(view(), gamma.clone(), 1e-6);
            let expected = plain::rms_norm(view(), gamma.clone(), 1e-6);
            testing::assert_same(&case, fused, expected, &[leaf(&x), leaf(&gamma)], 2e-5);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let case = &Case::all()[1];
        let (x, gamma) = (case.leaf([3, 5], true), case.leaf([5], true));
        let weights = case.random([3, 5]);
        let loss = |x| (rms_norm(x, gamma.clone(), 1e-5) * weights.clone()).sum();
        let grads = loss(x.clone()).backward();
        let step = case.random([3, 5]);
        let along = (x.grad(&grads).unwrap() * step.clone().inner()).sum();
        let along = along.into_scalar::<f64>();
        let at = |h: f64| loss(x.clone() + step.clone() * h).into_scalar::<f64>();
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!(
            (along - difference).abs() < 1e-8,
            "{along} is not {difference}"
        );
    }

    #[test]
    fn a_frozen_gamma_receives_no_gradient_and_a_trained_one_does() {
        for case in Case::all() {
            for trained in [true, false] {
                let (x, gamma) = (case.leaf([3, 4], !trained), case.leaf([4], trained));
                let grads = rms_norm(x.clone(), gamma.clone(), 1e-5).sum().backward();
                assert_eq!(gamma.grad(&grads).is_some(), trained);
                assert_eq!(x.grad(&grads).is_some(), !trained);
            }
        }
    }

    #[test]
    #[should_panic(expected = "`gamma` has 5 elements, expected 4")]
    fn a_gamma_of_the_wrong_length_is_refused() {
        let case = &Case::all()[0];
        rms_norm(case.random([2, 4]), case.random([5]), 1e-5);
    }
}
