//! The norm of gradients, and their scaling.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::{flex, simd};

/// The sum of the squares of all elements, `[1]`; not differentiable.
pub fn square_sum<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as NormOps>::square_sum(x.into_dispatch()))
}

/// All elements times a number, in place where nobody else holds them; not differentiable.
pub fn scaled<const D: usize>(x: Tensor<D>, factor: f64) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as NormOps>::scaled(x.into_dispatch(), factor))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait NormOps: Backend {
    /// The sum of the squares.
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::square_sum::<Self>(x)
    }

    /// All elements times a number.
    fn scaled(x: FloatTensor<Self>, factor: f64) -> FloatTensor<Self> {
        composed::scaled::<Self>(x, factor)
    }
}

/// The operations in terms of a backend's own.
mod composed {
    use super::*;

    pub(super) fn square_sum<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let x = B::float_reshape(x.clone(), Shape::new([x.shape().num_elements()]));
        B::float_sum(B::float_mul(x.clone(), x))
    }

    pub(super) fn scaled<B: Backend>(x: FloatTensor<B>, factor: f64) -> FloatTensor<B> {
        B::float_mul_scalar(x, factor.into())
    }
}

impl NormOps for NdArray {}

#[cfg(feature = "cuda")]
impl NormOps for burn::backend::Cube {}

/// Elements that a thread takes at a time.
const PART: usize = 1 << 14;

impl NormOps for Flex {
    fn square_sum(x: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x]) {
            return composed::square_sum::<Self>(x);
        }
        let x = flex::contiguous(x);
        // Parts are added in their order: the sum must not depend on which thread was first.
        let parts: Vec<f64> = flex::slice(&x)
            .par_chunks(PART)
            .map(|part| f64::from(simd::square_sum(part)))
            .collect();
        let sum = parts.iter().sum::<f64>() as f32;
        flex::tensor(vec![sum], Shape::new([1]))
    }

    fn scaled(x: FlexTensor, factor: f64) -> FlexTensor {
        if !flex::all_f32(&[&x]) {
            return composed::scaled::<Self>(x, factor);
        }
        let mut x = flex::owned(x);
        flex::slice_mut(&mut x)
            .par_chunks_mut(PART)
            .for_each(|part| simd::scale(part, factor as f32));
        x
    }
}

impl<B: NormOps, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::square_sum(x.into_primitive()))
    }

    fn scaled(x: FloatTensor<Self>, factor: f64) -> FloatTensor<Self> {
        Self::from_inner(B::scaled(x.into_primitive(), factor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Case, assert_close};

    #[test]
    fn sums_of_squares_and_scaling_match_the_plain_forms_on_any_view() {
        for case in Case::all() {
            for shape in [[1, 1], [7, 33], [300, 129]] {
                let x = case.random(shape).inner();
                let plain = x.clone().square().sum();
                assert_close([square_sum(x.clone()), plain.clone()], 1e-5, "sum");
                let turned = x.clone().transpose();
                assert_close([square_sum(turned.clone()), plain], 1e-5, "sum of a view");
                assert_close(
                    [scaled(turned, 0.3), x.clone().transpose() * 0.3],
                    1e-6,
                    "scaled",
                );
            }
        }
    }

    #[test]
    fn scaling_leaves_a_tensor_that_someone_else_holds() {
        let x = Case::all()[0].random([5, 5]).inner();
        let before = x.to_data();
        drop(scaled(x.clone(), 2.0));
        assert_eq!(x.to_data(), before);
    }
}
