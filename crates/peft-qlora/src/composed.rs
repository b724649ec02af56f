//! The operations on packed weights in terms of a backend's own.
//!
//! They decode the whole weight at once and let go of it right after the product.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, IntDType, Shape, Slice, TensorData};

use crate::double_quant::{self, NESTED_BLOCK};
use crate::int8;
use crate::packed_linear::Coding;
use crate::packed_op::{BlockScales, PackedWeight};

/// `x Wᵀ`
pub(crate) fn linear<B: Backend>(x: FloatTensor<B>, weight: PackedWeight<B>) -> FloatTensor<B> {
    product::<B>(x, |weight| B::float_transpose(weight), weight)
}

/// `x Wᵀ + b`
pub(crate) fn linear_bias<B: Backend>(
    x: FloatTensor<B>,
    bias: FloatTensor<B>,
    weight: PackedWeight<B>,
) -> FloatTensor<B> {
    let y = linear::<B>(x, weight);
    let mut ones = vec![1; y.shape().num_dims()];
    *ones.last_mut().expect("at least one dimension") = bias.shape()[0];
    B::float_add(y, B::float_reshape(bias, Shape::from(ones)))
}

/// `grad W`
pub(crate) fn input_grad<B: Backend>(
    grad: FloatTensor<B>,
    weight: PackedWeight<B>,
) -> FloatTensor<B> {
    product::<B>(grad, |weight| weight, weight)
}

/// `x` times the weight, the latter in the type of the former.
fn product<B: Backend>(
    x: FloatTensor<B>,
    oriented: impl Fn(FloatTensor<B>) -> FloatTensor<B>,
    weight: PackedWeight<B>,
) -> FloatTensor<B> {
    let mut shape = x.shape().to_vec();
    let width = shape[shape.len() - 1];
    let rows = x.shape().num_elements() / width.max(1);
    let weight = oriented(unpack::<B>(weight));
    let weight = B::float_cast(weight, x.dtype().into());
    let x = B::float_reshape(x, Shape::new([rows, width]));
    *shape.last_mut().expect("at least one dimension") = weight.shape()[1];
    B::float_reshape(B::float_matmul(x, weight), Shape::from(shape))
}

/// The weight as a dense `[d_out, d_in]` matrix of 32-bit floats.
pub(crate) fn unpack<B: Backend>(weight: PackedWeight<B>) -> FloatTensor<B> {
    let PackedWeight {
        codes,
        scales,
        layout,
    } = weight;
    let fractions = match layout.coding {
        Coding::FourBit(book) => table::<B>(&book.values, nibbles::<B>(codes)),
        Coding::Int8 => B::int_into_float(codes, FloatDType::F32),
    };
    let scales = match scales {
        BlockScales::Exact(absmax) => absmax,
        BlockScales::Quantised {
            absmax,
            nested_absmax,
            offset,
        } => {
            let fractions = table::<B>(double_quant::dynamic_map(), absmax);
            let scales = times_scales::<B>(fractions, nested_absmax, NESTED_BLOCK);
            let scales = B::float_slice(scales, &[Slice::from(0..layout.blocks() as isize)]);
            B::float_add(scales, offset)
        }
    };
    let values = times_scales::<B>(fractions, scales, layout.block_size);
    let values = match layout.coding {
        Coding::FourBit(_) => values,
        // After the scale and not with it, as bitsandbytes rounds.
        Coding::Int8 => B::float_mul_scalar(values, int8::STEP.into()),
    };
    let values = B::float_slice(values, &[Slice::from(0..layout.numel() as isize)]);
    B::float_reshape(values, Shape::new([layout.d_out, layout.d_in]))
}

/// The codes of each byte, the high nibble first.
fn nibbles<B: Backend>(codes: IntTensor<B>) -> IntTensor<B> {
    let bytes = codes.shape().num_elements();
    // Wider than the storage: not every backend shifts bytes.
    let codes = B::int_cast(codes, IntDType::I32);
    let column = |nibble| B::int_reshape(nibble, Shape::new([bytes, 1]));
    let high = column(B::bitwise_right_shift_scalar(codes.clone(), 4i32.into()));
    let low = column(B::bitwise_and_scalar(codes, 15i32.into()));
    B::int_reshape(B::int_cat(vec![high, low], 1), Shape::new([2 * bytes]))
}

/// The entries of a table at these places.
fn table<B: Backend>(entries: &[f32], places: IntTensor<B>) -> FloatTensor<B> {
    let entries = TensorData::new(entries.to_vec(), [entries.len()]);
    let entries = B::float_from_data(entries, &places.device());
    B::float_select(entries, 0, B::int_cast(places, IntDType::I32))
}

/// Blocks of values, each times its scale; flat, and padded with zeros to whole blocks.
fn times_scales<B: Backend>(
    values: FloatTensor<B>,
    scales: FloatTensor<B>,
    block_size: usize,
) -> FloatTensor<B> {
    let (numel, blocks) = (values.shape().num_elements(), scales.shape().num_elements());
    let missing = blocks * block_size - numel;
    let values = if missing == 0 {
        values
    } else {
        let zeros = B::float_zeros(Shape::new([missing]), &values.device(), FloatDType::F32);
        B::float_cat(vec![values, zeros], 0)
    };
    let values = B::float_reshape(values, Shape::new([blocks, block_size]));
    let scales = B::float_reshape(scales, Shape::new([blocks, 1]));
    B::float_reshape(
        B::float_mul(values, scales),
        Shape::new([blocks * block_size]),
    )
}
