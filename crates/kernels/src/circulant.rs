//! Matrices of circulant blocks.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Shape, Tensor};

use crate::{buffer, flex, simd};

/// The dense matrix whose block from input part `n` to output part `m` is circulant:
/// `kernel[m, n, (s - t) mod size]` at row `s` and column `t`.
///
/// # Shapes
///
/// - kernel: `[outputs, inputs, size]`
/// - result: `[inputs * size, outputs * size]`
pub fn circulant(kernel: Tensor<3>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CirculantOps>::circulant_matrix(
        kernel.into_dispatch(),
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait CirculantOps: Backend {
    /// The matrix, differentiable.
    fn circulant_matrix(kernel: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::matrix::<Self>(kernel)
    }

    /// The gradient of the kernel, whose blocks are `size` wide: what the matrix's gradient holds
    /// at all places of an element, added up.
    fn circulant_grad(grad: FloatTensor<Self>, size: usize) -> FloatTensor<Self> {
        composed::grad::<Self>(grad, size)
    }
}

/// The operations in terms of a backend's own.
mod composed {
    use super::*;
    use burn::backend::tensor::{Device, IndexingUpdateOp, IntTensor};
    use burn::tensor::TensorData;

    pub(super) fn matrix<B: Backend>(kernel: FloatTensor<B>) -> FloatTensor<B> {
        let shape = kernel.shape();
        let [outputs, inputs, size] = [shape[0], shape[1], shape[2]];
        let places = places::<B>(size, &kernel.device());
        let kernel = B::float_reshape(kernel, Shape::new([outputs * inputs, size]));
        let blocks = B::float_select(kernel, 1, places);
        let blocks = B::float_reshape(blocks, Shape::new([outputs, inputs, size, size]));
        let matrix = B::float_permute(blocks, &[1, 2, 0, 3]);
        B::float_reshape(matrix, Shape::new([inputs * size, outputs * size]))
    }

    pub(super) fn grad<B: Backend>(grad: FloatTensor<B>, size: usize) -> FloatTensor<B> {
        let (shape, device, dtype) = (grad.shape(), grad.device(), grad.dtype());
        let [inputs, outputs] = [shape[0] / size, shape[1] / size];
        let blocks = B::float_reshape(grad, Shape::new([inputs, size, outputs, size]));
        let blocks = B::float_permute(blocks, &[2, 0, 1, 3]);
        let blocks = B::float_reshape(blocks, Shape::new([outputs * inputs, size * size]));
        let zeros = B::float_zeros(Shape::new([outputs * inputs, size]), &device, dtype.into());
        let places = places::<B>(size, &device);
        let sums = B::float_select_assign(zeros, 1, places, blocks, IndexingUpdateOp::Add);
        B::float_reshape(sums, Shape::new([outputs, inputs, size]))
    }

    /// Which element of a kernel stands at each place of its block.
    fn places<B: Backend>(size: usize, device: &Device<B>) -> IntTensor<B> {
        let place = |at: usize| ((size + at / size - at % size) % size) as i32;
        let places: Vec<i32> = (0..size * size).map(place).collect();
        B::int_from_data(TensorData::new(places, [size * size]), device)
    }
}

impl CirculantOps for NdArray {}

#[cfg(feature = "cuda")]
impl CirculantOps for burn::backend::Cube {}

impl CirculantOps for Flex {
    fn circulant_matrix(kernel: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&kernel]) {
            return composed::matrix::<Self>(kernel);
        }
        let kernel = flex::contiguous(kernel);
        let shape = kernel.layout().shape();
        let [outputs, inputs, size] = [shape[0], shape[1], shape[2]];
        let (values, width) = (flex::slice(&kernel), outputs * size);
        // A thread fills the rows of one input part.
        let out = buffer::fill_parts(inputs * size * width, size * width, |start, rows| {
            let input = start / (size * width);
            let mut turned = vec![0.0; 2 * size];
            for output in 0..outputs {
                let own = &values[(output * inputs + input) * size..][..size];
                for (at, place) in turned.iter_mut().enumerate() {
                    *place = own[(2 * size - at) % size];
                }
                for (s, row) in rows.chunks_exact_mut(width).enumerate() {
                    row[output * size..][..size].copy_from_slice(&turned[size - s..][..size]);
                }
            }
        });
        flex::tensor(out, Shape::new([inputs * size, width]))
    }

    fn circulant_grad(grad: FlexTensor, size: usize) -> FlexTensor {
        if !flex::all_f32(&[&grad]) {
            return composed::grad::<Self>(grad, size);
        }
        let grad = flex::contiguous(grad);
        let [rows, width] = flex::rows(grad.layout().shape());
        let (inputs, outputs) = (rows / size, width / size);
        let values = flex::slice(&grad);
        let out = buffer::fill_parts(outputs * rows, size, |start, own| {
            let (output, input) = (start / size / inputs, start / size % inputs);
            // The sums by `t - s`, as the rows were turned.
            let mut turned = vec![0.0; 2 * size];
            for s in 0..size {
                let row = &values[(input * size + s) * width + output * size..][..size];
                simd::add_assign(&mut turned[size - s..][..size], row);
            }
            for (at, sum) in turned.iter().enumerate() {
                own[(2 * size - at) % size] += sum;
            }
        });
        flex::tensor(out, Shape::new([outputs, inputs, size]))
    }
}

#[derive(Debug)]
struct CirculantBackward;

impl<B: CirculantOps> Backward<B, 1> for CirculantBackward {
    /// The side of a block.
    type State = usize;

    fn backward(self, ops: Ops<usize, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            grads.register::<B>(node.id, B::circulant_grad(grad, ops.state));
        }
    }
}

impl<B: CirculantOps, C: CheckpointStrategy> CirculantOps for Autodiff<B, C> {
    fn circulant_matrix(kernel: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = CirculantBackward.prepare::<C>([kernel.node()]);
        let kernel = kernel.into_primitive();
        let size = kernel.shape()[2];
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(size, B::circulant_matrix(kernel)),
            OpsKind::UnTracked(prep) => prep.finish(B::circulant_matrix(kernel)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Case, leaf};
    use crate::{circulant, plain};

    #[test]
    fn matrix_and_gradient_match_the_plain_form_for_any_number_of_blocks() {
        for case in Case::all() {
            for shape in [[1, 1, 1], [2, 3, 4], [3, 1, 7], [5, 4, 16]] {
                let kernel = case.leaf(shape, true);
                let leaves = [leaf(&kernel)];
                let (fused, plain) = (circulant(kernel.clone()), plain::circulant(kernel));
                testing::assert_same(&case, fused, plain, &leaves, 1e-6);
            }
        }
    }

    #[test]
    fn no_gradient_flows_where_none_is_asked_for() {
        for case in Case::all() {
            assert!(!circulant(case.leaf([2, 2, 3], false)).is_require_grad());
        }
    }
}
