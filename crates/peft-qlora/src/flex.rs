//! The operations on packed weights as loops over slices, for the CPU backend `Flex`.
//!
//! The weight is decoded some rows at a time into one buffer, and each such tile is multiplied
//! before the next is decoded.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};

use crate::codec::{Decoder, ScaleSlices};
use crate::composed;
use crate::packed_op::{BlockScales, PackedWeight};
use crate::product::{self, View, ViewMut};

/// Rows of the weight in a tile. Every tile's product packs the input anew, which made tiles of 40
/// rows 1.8 times as slow as a dense product and tiles of 85 rows 1.3 times; from 250 rows on the
/// difference is lost in the noise.
const TILE_ROWS: usize = 256;

/// `x Wᵀ + b`
pub(crate) fn linear(
    x: FlexTensor,
    bias: Option<FlexTensor>,
    weight: PackedWeight<Flex>,
) -> FlexTensor {
    let all_f32 = x.dtype() == DType::F32 && bias.iter().all(|b| b.dtype() == DType::F32);
    if !all_f32 {
        return match bias {
            Some(bias) => composed::linear_bias::<Flex>(x, bias, weight),
            None => composed::linear::<Flex>(x, weight),
        };
    }
    let [d_in, d_out] = [weight.layout.d_in, weight.layout.d_out];
    let (shape, x) = (with_width(&x, d_out), contiguous(x));
    let rows = x.layout().num_elements() / d_in.max(1);
    // The product is added to the bias rather than the bias to the product: one pass less.
    let mut y = match bias {
        Some(bias) => values(&contiguous(bias)).repeat(rows),
        None => vec![0.0; rows * d_out],
    };
    let x = View::rows(values(&x), d_in);
    for_each_tile(weight, |first, len, tile| {
        let out = ViewMut::columns(&mut y, d_out, first, len);
        product::add(out, x, View::rows(tile, d_in).t());
    });
    tensor(y, shape)
}

/// `grad W`
pub(crate) fn input_grad(grad: FlexTensor, weight: PackedWeight<Flex>) -> FlexTensor {
    if grad.dtype() != DType::F32 {
        return composed::input_grad::<Flex>(grad, weight);
    }
    let [d_in, d_out] = [weight.layout.d_in, weight.layout.d_out];
    let (shape, grad) = (with_width(&grad, d_in), contiguous(grad));
    let mut x = vec![0.0; shape.num_elements()];
    let grad = View::rows(values(&grad), d_out);
    for_each_tile(weight, |first, len, tile| {
        let out = ViewMut::columns(&mut x, d_in, 0, d_in);
        product::add(out, grad.columns(first, len), View::rows(tile, d_in));
    });
    tensor(x, shape)
}

/// The weight as a dense `[d_out, d_in]` matrix.
pub(crate) fn unpack(weight: PackedWeight<Flex>) -> FlexTensor {
    let layout = weight.layout;
    let mut out = vec![0.0; layout.numel()];
    with_decoder(weight, |decoder| decoder.read_parallel(0, &mut out));
    tensor(out, Shape::new([layout.d_out, layout.d_in]))
}

/// Calls `work` with the index of the first row, the number of rows and the decoded rows, tile
/// after tile; the tiles share one buffer.
fn for_each_tile(weight: PackedWeight<Flex>, mut work: impl FnMut(usize, usize, &[f32])) {
    let [d_in, d_out] = [weight.layout.d_in, weight.layout.d_out];
    let tile_rows = TILE_ROWS.min(d_out.max(1));
    let mut buffer = vec![0.0; tile_rows * d_in];
    with_decoder(weight, |decoder| {
        for first in (0..d_out).step_by(tile_rows) {
            let rows = tile_rows.min(d_out - first);
            let tile = &mut buffer[..rows * d_in];
            decoder.read_parallel(first * d_in, tile);
            work(first, rows, tile);
        }
    });
}

fn with_decoder(weight: PackedWeight<Flex>, work: impl FnOnce(&Decoder<'_>)) {
    let PackedWeight {
        codes,
        scales,
        layout,
    } = weight;
    let codes = contiguous(codes);
    let read = |scales| {
        work(&Decoder::new(
            bytes(&codes),
            scales,
            layout.block_size,
            layout.book,
        ));
    };
    match scales {
        BlockScales::Exact(absmax) => read(ScaleSlices::Exact(values(&contiguous(absmax)))),
        BlockScales::Quantised {
            absmax,
            nested_absmax,
            offset,
        } => read(ScaleSlices::Quantised {
            absmax: bytes(&contiguous(absmax)),
            nested_absmax: values(&contiguous(nested_absmax)),
            offset: values(&contiguous(offset))[0],
        }),
    }
}

fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor")
}

fn bytes(tensor: &FlexTensor) -> &[u8] {
    tensor.as_slice().expect("a contiguous u8 tensor")
}

fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(data),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// The shape of a tensor with another last dimension.
fn with_width(tensor: &FlexTensor, width: usize) -> Shape {
    let mut dims = tensor.layout().shape().to_vec();
    *dims.last_mut().expect("at least one dimension") = width;
    Shape::from(dims)
}
