//! Layer normalisation.

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

/// Layer normalisation over the last dimension, `(x - mean) / sqrt(variance + eps) * gamma + beta`.
///
/// # Shapes
///
/// - x and result: `[.., d]`
/// - gamma, beta: `[d]`
///
/// # Panics
///
/// When `gamma` or `beta` is not as long as the last dimension of `x`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let d = x.dims()[D - 1];
    for (name, [length]) in [("gamma", gamma.dims()), ("beta", beta.dims())] {
        assert_eq!(
            length, d,
            "`{name}` has {length} elements, expected {d} like `x`"
        );
    }
    let (gamma, beta) = (gamma.into_dispatch(), beta.into_dispatch());
    Tensor::from_dispatch(<Dispatch as LayerNormOps>::layer_norm_affine(
        x.into_dispatch(),
        gamma,
        beta,
        eps,
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait LayerNormOps: Backend {
    /// Layer normalisation, differentiable.
    fn layer_norm_affine(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        composed::forward::<Self>(x, gamma, beta, eps)
    }

    /// The gradient for `x`.
    fn layer_norm_grad(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        composed::grad::<Self>(x, gamma, grad, eps)
    }

    /// The gradients for `gamma` and `beta`.
    fn layer_norm_affine_grad(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::affine_grad::<Self>(x, grad, eps)
    }
}

/// The operations in terms of a backend's own.
mod composed {
    use super::*;

    pub(super) fn forward<B: Backend>(
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
        eps: f64,
    ) -> FloatTensor<B> {
        let shape = x.shape();
        let (normal, _) = normalise::<B>(x, eps);
        let y = B::float_add(B::float_mul(normal, row::<B>(gamma)), row::<B>(beta));
        B::float_reshape(y, shape)
    }

    pub(super) fn grad<B: Backend>(
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        grad: FloatTensor<B>,
        eps: f64,
    ) -> FloatTensor<B> {
        let shape = x.shape();
        let (normal, deviation) = normalise::<B>(x, eps);
        let grad = B::float_mul(matrix::<B>(grad), row::<B>(gamma));
        let mean = B::float_mean_dim(grad.clone(), 1);
        let along = B::float_mean_dim(B::float_mul(grad.clone(), normal.clone()), 1);
        let rest = B::float_sub(B::float_sub(grad, mean), B::float_mul(normal, along));
        B::float_reshape(B::float_div(rest, deviation), shape)
    }

    pub(super) fn affine_grad<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        eps: f64,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let [_, width] = flex::rows(&x.shape());
        let (normal, _) = normalise::<B>(x, eps);
        let grad = matrix::<B>(grad);
        let sum = |t| B::float_reshape(B::float_sum_dim(t, 0), Shape::new([width]));
        (sum(B::float_mul(grad.clone(), normal)), sum(grad))
    }

    /// The rows with mean 0 and variance 1, and their standard deviations.
    fn normalise<B: Backend>(x: FloatTensor<B>, eps: f64) -> (FloatTensor<B>, FloatTensor<B>) {
        let x = matrix::<B>(x);
        let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
        let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 1);
        let deviation = B::float_sqrt(B::float_add_scalar(variance, eps.into()));
        (B::float_div(centred, deviation.clone()), deviation)
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

impl LayerNormOps for NdArray {}

#[cfg(feature = "cuda")]
impl LayerNormOps for burn::backend::Cube {}

/// Rows that a thread takes at a time.
const ROWS: usize = 8;

impl LayerNormOps for Flex {
    fn layer_norm_affine(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        eps: f64,
    ) -> FlexTensor {
        if !flex::all_f32(&[&x, &gamma, &beta]) {
            return composed::forward::<Self>(x, gamma, beta, eps);
        }
        let [x, gamma, beta] = [x, gamma, beta].map(flex::contiguous);
        let [values, gamma, beta] = [&x, &gamma, &beta].map(flex::slice);
        let width = gamma.len().max(1);
        let y = buffer::fill_parts(values.len(), ROWS * width, |start, out| {
            for (out, x) in out
                .chunks_exact_mut(width)
                .zip(values[start..].chunks_exact(width))
            {
                simd::layer_norm_row(x, gamma, beta, eps as f32, out);
            }
        });
        flex::tensor(y, x.layout().shape().clone())
    }

    fn layer_norm_grad(x: FlexTensor, gamma: FlexTensor, grad: FlexTensor, eps: f64) -> FlexTensor {
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
                simd::layer_norm_row_backward(x, grad, gamma, eps as f32, out);
            }
        });
        flex::tensor(dx, x.layout().shape().clone())
    }

    fn layer_norm_affine_grad(
        x: FlexTensor,
        grad: FlexTensor,
        eps: f64,
    ) -> (FlexTensor, FlexTensor) {
        if !flex::all_f32(&[&x, &grad]) {
            return composed::affine_grad::<Self>(x, grad, eps);
        }
        let [_, width] = flex::rows(x.layout().shape());
        let [x, grad] = [x, grad].map(flex::contiguous);
        let [values, grads] = [&x, &grad].map(flex::slice);
        let part = width.max(1) * flex::ROWS_A_SUM;
        let sums: Vec<_> = values
            .par_chunks(part)
            .zip(grads.par_chunks(part))
            .map(|(x, grad)| {
                let (mut dgamma, mut dbeta) = (vec![0.0; width], vec![0.0; width]);
                for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
                    simd::layer_norm_row_affine(x, grad, eps as f32, &mut dgamma, &mut dbeta);
                }
                (dgamma, dbeta)
            })
            .collect();
        // Added in their order, not in that of the threads: the result must not depend on chance.
        let (mut dgamma, mut dbeta) = (vec![0.0; width], vec![0.0; width]);
        for (gamma, beta) in &sums {
            simd::add_assign(&mut dgamma, gamma);
            simd::add_assign(&mut dbeta, beta);
        }
        let shape = Shape::new([width]);
        (
            flex::tensor(dgamma, shape.clone()),
            flex::tensor(dbeta, shape),
        )
    }
}

#[derive(Debug)]
struct LayerNormBackward;

impl<B: LayerNormOps> Backward<B, 3> for LayerNormBackward {
    /// Input and gamma; the moments are cheaper to compute again than to keep.
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, gamma_node, beta_node] = ops.parents;
        let (x, gamma, eps) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if gamma_node.is_some() || beta_node.is_some() {
            let (dgamma, dbeta) = B::layer_norm_affine_grad(x.clone(), grad.clone(), eps);
            if let Some(node) = gamma_node {
                grads.register::<B>(node.id, dgamma);
            }
            if let Some(node) = beta_node {
                grads.register::<B>(node.id, dbeta);
            }
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::layer_norm_grad(x, gamma, grad, eps));
        }
    }
}

impl<B: LayerNormOps, C: CheckpointStrategy> LayerNormOps for Autodiff<B, C> {
    fn layer_norm_affine(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let prep = LayerNormBackward
            .prepare::<C>([x.node(), gamma.node(), beta.node()])
            .compute_bound()
            .stateful();
        let [x, gamma, beta] = [x, gamma, beta].map(|t| t.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let state = (x.clone(), gamma.clone(), eps);
                prep.finish(state, B::layer_norm_affine(x, gamma, beta, eps))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::layer_norm_affine(x, gamma, beta, eps)),
        }
    }
}

#[cfg(test)]
mod tests;
