//! Reading and making tensors of the CPU backend `Flex` as plain slices.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};

use rayon::prelude::*;

use crate::product::{self, Start, View};
use crate::simd;

/// Whether all tensors hold `f32`, the type that the fused loops are written for.
pub(crate) fn all_f32(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|t| t.dtype() == DType::F32)
}

/// The tensor with its elements next to each other, copied only if they are not.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The elements of a contiguous `f32` tensor.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor")
}

/// The tensor contiguous and held by nobody else, copied only if it is not.
pub(crate) fn owned(mut tensor: FlexTensor) -> FlexTensor {
    let whole = tensor.is_contiguous() && tensor.layout().start_offset() == 0;
    let fits = |data: &mut [f32], len| data.len() == len;
    let len = tensor.layout().num_elements();
    if whole && tensor.try_storage_mut().is_some_and(|data| fits(data, len)) {
        return tensor;
    }
    let tensor = contiguous(tensor);
    self::tensor(slice(&tensor).to_vec(), tensor.layout().shape().clone())
}

/// The elements of a tensor that [`owned`] gave, to be changed.
pub(crate) fn slice_mut(tensor: &mut FlexTensor) -> &mut [f32] {
    tensor.try_storage_mut().expect("a tensor of one owner")
}

/// The elements from a tensor's first one on, to be read with its strides.
fn storage(tensor: &FlexTensor) -> &[f32] {
    let storage: &[f32] = tensor.storage();
    &storage[tensor.layout().start_offset().min(storage.len())..]
}

/// The tensor in a form that [`matrix`] and [`batched`] can read: copied if a stride is negative.
pub(crate) fn forward_strides(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().has_positive_strides() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The tensor as a matrix of its last dimension, copied only if its rows are not evenly spaced.
pub(crate) fn as_rows(tensor: FlexTensor) -> FlexTensor {
    let [rows, width] = rows(tensor.layout().shape());
    let layout = tensor.layout();
    let (dims, strides) = (layout.shape().to_vec(), layout.strides());
    let outer = dims.len() - 1;
    let even = (1..outer).all(|d| strides[d - 1] == strides[d] * dims[d] as isize);
    if outer == 0 || !even || !layout.has_positive_strides() {
        return contiguous(tensor).reshape(Shape::new([rows, width]));
    }
    let strides = vec![strides[outer - 1], strides[outer]];
    let layout = Layout::new(Shape::new([rows, width]), strides, layout.start_offset());
    tensor.with_layout(layout)
}

/// A view of a two-dimensional tensor in whatever strides it has.
pub(crate) fn matrix(tensor: &FlexTensor) -> View<'_> {
    let (shape, strides) = (tensor.layout().shape(), tensor.layout().strides());
    let strides = [strides[0] as usize, strides[1] as usize];
    View::new(storage(tensor), [shape[0], shape[1]], strides)
}

/// A `[seq, dh]` view of one batch and head of a `[batch, seq, heads * dh]` tensor.
pub(crate) fn head(tensor: &FlexTensor, batch: usize, head: usize, dh: usize) -> View<'_> {
    let (shape, strides) = (tensor.layout().shape(), tensor.layout().strides());
    let [b, s, c] = [0, 1, 2].map(|d| strides[d] as usize);
    let storage = storage(tensor);
    let from = (batch * b + head * dh * c).min(storage.len());
    View::new(&storage[from..], [shape[1], dh], [s, c])
}

/// Number of rows when a tensor is read as a matrix of its last dimension, and their length.
pub(crate) fn rows(shape: &Shape) -> [usize; 2] {
    let last = shape.num_dims() - 1;
    [shape[..last].iter().product(), shape[last]]
}

/// The shape with another last dimension.
pub(crate) fn with_width(shape: &Shape, width: usize) -> Shape {
    let mut dims = shape.to_vec();
    *dims.last_mut().expect("at least one dimension") = width;
    Shape::from(dims)
}

/// A new tensor of these elements.
pub(crate) fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(data),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// A new tensor that is the product of two matrices.
pub(crate) fn product(a: View<'_>, b: View<'_>) -> FlexTensor {
    let shape = Shape::new([a.shape()[0], b.shape()[1]]);
    tensor(product::product(Start::Zero, a, &b), shape)
}

/// The sum of all rows of a matrix.
///
/// The same rows are added up in the same order whatever threads do what: a sum of floats depends
/// on its order, and a run must give the same losses every time.
pub(crate) fn sum_rows(data: &[f32], width: usize) -> Vec<f32> {
    let sum = |mut total: Vec<f32>, part: &[f32]| {
        part.chunks_exact(width)
            .for_each(|row| simd::add_assign(&mut total, row));
        total
    };
    let parts: Vec<_> = data
        .par_chunks(width.max(1) * ROWS_A_SUM)
        .map(|part| sum(vec![0.0; width], part))
        .collect();
    let zero = vec![0.0; width];
    parts.iter().fold(zero, |total, part| sum(total, part))
}

/// Rows that are added up by one thread before the sums of all threads are.
pub(crate) const ROWS_A_SUM: usize = 64;
