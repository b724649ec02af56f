//! The operations on packed weights as loops over slices, for the CPU backend `Flex`.
//!
//! A product decodes the weight block by block into its own buffers, in the place of the copy that
//! it makes of a dense one: there is never more of it than fits a core's cache.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};

use crate::codec::{Decoder, ScaleSlices};
use crate::composed;
use crate::packed_blocks::PackedBlocks;
use crate::packed_linear::Coding;
use crate::packed_op::{BlockScales, PackedWeight};
use kernels::product::{self, Start, View};

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
    let bias = bias.map(contiguous);
    let start = bias
        .as_ref()
        .map_or(Start::Zero, |bias| Start::Row(values(bias)));
    let x = View::rows(values(&x), d_in);
    let y = with_decoder(weight, |decoder| {
        product::product(start, x, &PackedBlocks::new(decoder, [d_out, d_in]).t())
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
    let grad = View::rows(values(&grad), d_out);
    let x = with_decoder(weight, |decoder| {
        product::product(
            Start::Zero,
            grad,
            &PackedBlocks::new(decoder, [d_out, d_in]),
        )
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

fn with_decoder<T>(weight: PackedWeight<Flex>, work: impl FnOnce(&Decoder<'_>) -> T) -> T {
    let PackedWeight {
        codes,
        scales,
        layout,
    } = weight;
    let codes = contiguous(codes);
    let read = |scales| {
        work(&match layout.coding {
            Coding::FourBit(book) => Decoder::new(bytes(&codes), scales, layout.block_size, book),
            Coding::Int8 => Decoder::int8(signed(&codes), scales, layout.block_size),
        })
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

fn signed(tensor: &FlexTensor) -> &[i8] {
    tensor.as_slice().expect("a contiguous i8 tensor")
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
