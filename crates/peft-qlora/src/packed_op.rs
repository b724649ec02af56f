//! The linear layer over a weight in 4 or 8 bits.
//!
//! Forward and backward each decode the weight for themselves. What stays alive in between is the
//! codes and their scales: no dense weight, no input, no gradient of a weight.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, Flex, NdArray, TensorMetadata,
    backend_extension,
};
use burn::tensor::{Shape, Tensor};

use crate::composed;
use crate::packed_linear::Coding;

/// How the values of a packed weight are laid out: row-major `[d_out, d_in]`, as in PyTorch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedLayout {
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    pub(crate) block_size: usize,
    pub(crate) coding: Coding,
}

impl PackedLayout {
    /// Number of values.
    pub(crate) fn numel(&self) -> usize {
        self.d_in * self.d_out
    }

    /// Number of blocks, the short last one included.
    pub(crate) fn blocks(&self) -> usize {
        self.numel().div_ceil(self.block_size)
    }
}

/// A weight in 4 or 8 bits.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct PackedWeight<B: Backend> {
    /// As the layout's coding says: two a byte, or signed bytes.
    pub(crate) codes: IntTensor<B>,
    #[extension_type]
    pub(crate) scales: BlockScales<B>,
    pub(crate) layout: PackedLayout,
}

/// The scales of a packed weight's blocks; see [`ScaleSlices`](crate::codec::ScaleSlices).
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum BlockScales<B: Backend> {
    Exact(FloatTensor<B>),
    Quantised {
        absmax: IntTensor<B>,
        nested_absmax: FloatTensor<B>,
        offset: FloatTensor<B>,
    },
}

/// `x Wᵀ + b` for a packed `W`; differentiable in `x` and `b`, while `W` is a constant.
///
/// # Shapes
/// - x: `[.., d_in]`
/// - bias: `[d_out]`
/// - result: `[.., d_out]`
///
/// # Panics
/// If `x` or the bias does not fit the weight.
pub(crate) fn packed_linear<const D: usize>(
    x: Tensor<D>,
    weight: PackedWeight<Dispatch>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let PackedLayout { d_in, d_out, .. } = weight.layout;
    let width = x.dims()[D - 1];
    assert_eq!(
        width, d_in,
        "`x` ends in {width}, expected `d_in` = {d_in} of the weight"
    );
    let x = x.into_dispatch();
    Tensor::from_dispatch(match bias {
        Some(bias) => {
            let length = bias.dims()[0];
            assert_eq!(
                length, d_out,
                "`bias` has {length} elements, expected `d_out` = {d_out}"
            );
            <Dispatch as PackedOps>::packed_linear_bias(x, bias.into_dispatch(), weight)
        }
        None => <Dispatch as PackedOps>::packed_linear(x, weight),
    })
}

/// The weight as a dense `[d_out, d_in]` constant.
pub(crate) fn unpack(weight: PackedWeight<Dispatch>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as PackedOps>::unpack(weight))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait PackedOps: Backend {
    /// `x Wᵀ`, differentiable in `x`.
    fn packed_linear(
        x: FloatTensor<Self>,
        #[extension_type] weight: PackedWeight<Self>,
    ) -> FloatTensor<Self> {
        composed::linear::<Self>(x, weight)
    }

    /// `x Wᵀ + b`, differentiable in `x` and `b`.
    fn packed_linear_bias(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        #[extension_type] weight: PackedWeight<Self>,
    ) -> FloatTensor<Self> {
        composed::linear_bias::<Self>(x, bias, weight)
    }

    /// `grad W`, the gradient of `x`.
    fn packed_input_grad(
        grad: FloatTensor<Self>,
        #[extension_type] weight: PackedWeight<Self>,
    ) -> FloatTensor<Self> {
        composed::input_grad::<Self>(grad, weight)
    }

    /// `W`, dense.
    fn unpack(#[extension_type] weight: PackedWeight<Self>) -> FloatTensor<Self> {
        composed::unpack::<Self>(weight)
    }
}

impl PackedOps for NdArray {}

#[cfg(feature = "cuda")]
impl PackedOps for burn::backend::Cube {}

impl PackedOps for Flex {
    fn packed_linear(x: FloatTensor<Self>, weight: PackedWeight<Self>) -> FloatTensor<Self> {
        crate::flex::linear(x, None, weight)
    }

    fn packed_linear_bias(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        weight: PackedWeight<Self>,
    ) -> FloatTensor<Self> {
        crate::flex::linear(x, Some(bias), weight)
    }

    fn packed_input_grad(grad: FloatTensor<Self>, weight: PackedWeight<Self>) -> FloatTensor<Self> {
        crate::flex::input_grad(grad, weight)
    }

    fn unpack(weight: PackedWeight<Self>) -> FloatTensor<Self> {
        crate::flex::unpack(weight)
    }
}

#[derive(Debug)]
struct PackedBackward;

impl<B: PackedOps> Backward<B, 1> for PackedBackward {
    type State = PackedWeight<B>;

    fn backward(self, ops: Ops<PackedWeight<B>, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = x {
            grads.register::<B>(node.id, B::packed_input_grad(grad, ops.state));
        }
    }
}

impl<B: PackedOps> Backward<B, 2> for PackedBackward {
    type State = PackedWeight<B>;

    fn backward(self, ops: Ops<PackedWeight<B>, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, bias] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = bias {
            let d_out = ops.state.layout.d_out;
            let rows = Shape::new([grad.shape().num_elements() / d_out, d_out]);
            let sum = B::float_sum_dim(B::float_reshape(grad.clone(), rows), 0);
            grads.register::<B>(node.id, B::float_reshape(sum, Shape::new([d_out])));
        }
        if let Some(node) = x {
            grads.register::<B>(node.id, B::packed_input_grad(grad, ops.state));
        }
    }
}

impl<B: PackedOps, C: CheckpointStrategy> PackedOps for Autodiff<B, C> {
    fn packed_linear(x: FloatTensor<Self>, weight: PackedWeight<Self>) -> FloatTensor<Self> {
        let weight = constant(weight);
        let prep = PackedBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful();
        let x = x.into_primitive();
        match prep {
            OpsKind::Tracked(prep) => prep.finish(weight.clone(), B::packed_linear(x, weight)),
            OpsKind::UnTracked(prep) => prep.finish(B::packed_linear(x, weight)),
        }
    }

    fn packed_linear_bias(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        weight: PackedWeight<Self>,
    ) -> FloatTensor<Self> {
        let weight = constant(weight);
        let prep = PackedBackward
            .prepare::<C>([x.node(), bias.node()])
            .compute_bound()
            .stateful();
        let (x, bias) = (x.into_primitive(), bias.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let y = B::packed_linear_bias(x, bias, weight.clone());
                prep.finish(weight, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::packed_linear_bias(x, bias, weight)),
        }
    }

    fn unpack(weight: PackedWeight<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::unpack(constant(weight)))
    }
}

/// The weight without its places in the graph: nothing is ever differentiated by codes or scales.
fn constant<B: PackedOps, C: CheckpointStrategy>(
    weight: PackedWeight<Autodiff<B, C>>,
) -> PackedWeight<B> {
    let PackedWeight {
        codes,
        scales,
        layout,
    } = weight;
    let scales = match scales {
        BlockScales::Exact(absmax) => BlockScales::Exact(absmax.into_primitive()),
        BlockScales::Quantised {
            absmax,
            nested_absmax,
            offset,
        } => BlockScales::Quantised {
            absmax,
            nested_absmax: nested_absmax.into_primitive(),
            offset: offset.into_primitive(),
        },
    };
    PackedWeight {
        codes,
        scales,
        layout,
    }
}
