//! Rotary position embedding.
//!
//! Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv 2104.09864.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Shape, Slice, Tensor};

use crate::{buffer, flex, simd};

/// Turns each head of `x` by the angles of its position: feature `i` of a head and feature
/// `i + dh / 2` are the coordinates that turn together, as in the Llama family.
///
/// No gradient flows into the angles.
///
/// # Shapes
///
/// - x and result: `[b, s, heads * dh]`
/// - cos, sin: `[b, s, dh / 2]`, of the angle of each pair of features
///
/// # Panics
///
/// When the shapes do not fit together.
pub fn rotary(x: Tensor<3>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<3> {
    let [batch, seq, width] = x.dims();
    let half = cos.dims()[2];
    assert!(
        half > 0 && width.is_multiple_of(2 * half),
        "`cos` has {half} angles, twice as many must divide the width {width} of `x`"
    );
    for (name, dims) in [("cos", cos.dims()), ("sin", sin.dims())] {
        assert_eq!(
            dims,
            [batch, seq, half],
            "shape of `{name}`, expected from `x`"
        );
    }
    Tensor::from_dispatch(<Dispatch as RotaryOps>::rotary_heads(
        x.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait RotaryOps: Backend {
    /// The rotation, differentiable.
    fn rotary_heads(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::<Self>(x, cos, sin)
    }
}

/// The operation in terms of a backend's own.
fn composed<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = x.shape();
    let [rows, width] = flex::rows(&shape);
    let half = cos.shape()[2];
    let heads = Shape::new([rows, width / (2 * half), 2 * half]);
    let x = B::float_reshape(x, heads);
    let part = |i: usize| {
        let columns = Slice::from(i * half..(i + 1) * half);
        B::float_slice(x.clone(), &[Slice::from(..), Slice::from(..), columns])
    };
    let [cos, sin] = [cos, sin].map(|t| B::float_reshape(t, Shape::new([rows, 1, half])));
    let first = B::float_sub(
        B::float_mul(part(0), cos.clone()),
        B::float_mul(part(1), sin.clone()),
    );
    let second = B::float_add(B::float_mul(part(1), cos), B::float_mul(part(0), sin));
    B::float_reshape(B::float_cat(vec![first, second], 2), shape)
}

impl RotaryOps for NdArray {}

#[cfg(feature = "cuda")]
impl RotaryOps for burn::backend::Cube {}

/// Rows that a thread takes at a time.
const ROWS: usize = 8;

impl RotaryOps for Flex {
    fn rotary_heads(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x, &cos, &sin]) {
            return composed::<Self>(x, cos, sin);
        }
        let [_, width] = flex::rows(x.layout().shape());
        let [x, cos, sin] = [x, cos, sin].map(flex::contiguous);
        let half = cos.layout().shape()[2];
        let [values, cos, sin] = [&x, &cos, &sin].map(flex::slice);
        let turned = buffer::fill_parts(values.len(), ROWS * width, |start, out| {
            let angles = start / width * half;
            let angles = cos[angles..]
                .chunks_exact(half)
                .zip(sin[angles..].chunks_exact(half));
            let rows = out
                .chunks_exact_mut(width)
                .zip(values[start..].chunks_exact(width));
            for ((out, x), (cos, sin)) in rows.zip(angles) {
                simd::rotate_row(x, cos, sin, out);
            }
        });
        flex::tensor(turned, x.layout().shape().clone())
    }
}

#[derive(Debug)]
struct RotaryBackward;

impl<B: RotaryOps> Backward<B, 1> for RotaryBackward {
    /// Cosines and sines.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (cos, sin) = ops.state;
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            // The transpose of a rotation turns the other way.
            let grad = B::rotary_heads(grad, cos, B::float_neg(sin));
            grads.register::<B>(node.id, grad);
        }
    }
}

impl<B: RotaryOps, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn rotary_heads(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let prep = RotaryBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful();
        let [x, cos, sin] = [x, cos, sin].map(|t| t.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let state = (cos.clone(), sin.clone());
                prep.finish(state, B::rotary_heads(x, cos, sin))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rotary_heads(x, cos, sin)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Case, leaf};
    use crate::{plain, rotary};

    #[test]
    fn values_and_gradients_match_the_plain_form() {
        for case in Case::all() {
            for ([batch, seq, heads], half) in [([1, 1, 1], 1), ([2, 5, 3], 3), ([3, 19, 2], 16)] {
                let x = case.leaf([batch, seq, heads * 2 * half], true);
                let angles = case.random([batch, seq, half]);
                // Scaled, as yarn does, so that the gradient is more than the inverse rotation.
                let (cos, sin) = (angles.clone().cos() * 1.3, angles.sin() * 1.3);
                let fused = rotary(x.clone(), cos.clone(), sin.clone());
                let expected = plain::rotary(x.clone(), cos, sin);
                testing::assert_same(&case, fused, expected, &[leaf(&x)], 2e-6);
            }
        }
    }

    #[test]
    fn views_match_the_plain_form() {
        for case in Case::all() {
            let x = case.leaf([4, 3, 12], true);
            let view = || x.clone().swap_dims(0, 1).narrow(2, 4, 8);
            let angles = case.random([4, 3, 4]).swap_dims(0, 1);
            let (cos, sin) = (angles.clone().cos(), angles.sin());
            let fused = rotary(view(), cos.clone(), sin.clone());
            testing::assert_same(
                &case,
                fused,
                plain::rotary(view(), cos, sin),
                &[leaf(&x)],
                2e-6,
            );
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let case = &Case::all()[1];
        let x = case.leaf([2, 3, 8], true);
        let (cos, sin) = (case.random([2, 3, 2]), case.random([2, 3, 2]));
        let weights = case.random([2, 3, 8]);
        let loss = |x| (rotary(x, cos.clone(), sin.clone()) * weights.clone()).sum();
        let grads = loss(x.clone()).backward();
        let step = case.random([2, 3, 8]);
        let along = (x.grad(&grads).unwrap() * step.clone().inner()).sum();
        let along = along.into_scalar::<f64>();
        let at = |h: f64| loss(x.clone() + step.clone() * h).into_scalar::<f64>();
        let difference = (at(1e-4) - at(-1e-4)) / 2e-4;
        assert!(
            (along - difference).abs() < 1e-8,
            "{along} is not {difference}"
        );
    }

    #[test]
    fn a_product_of_queries_and_keys_depends_on_their_distance_alone() {
        for case in Case::all() {
            let x = case.random([1, 1, 6]).repeat_dim(1, 5);
            let y = case.random([1, 1, 6]).repeat_dim(1, 5);
            let places = burn::tensor::Tensor::<1, burn::tensor::Int>::arange(0..5, &case.device);
            let angles = places.float().cast(x.dtype()).reshape([1, 5, 1]);
            let angles = angles.repeat_dim(2, 3) * case.random([1, 1, 3]).repeat_dim(1, 5);
            let turn = |t| rotary(t, angles.clone().cos(), angles.clone().sin());
            let (x, y) = (turn(x), turn(y));
            let later = (x.clone().narrow(1, 2, 3) * y.clone().narrow(1, 0, 3)).sum_dim(2);
            let first = later.clone().narrow(1, 0, 1).repeat_dim(1, 3);
            testing::assert_close([later, first], 1e-5, "product");
        }
    }

    #[test]
    #[should_panic(expected = "shape of `sin`")]
    fn angles_of_another_length_are_refused() {
        let case = &Case::all()[0];
        rotary(
            case.random([2, 4, 6]),
            case.random([2, 4, 3]),
            case.random([2, 3, 3]),
        );
    }
}
