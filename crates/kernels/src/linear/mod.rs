//! The linear layer.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::{
    NodeId,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Shape, Tensor};

use crate::flex;
use crate::product::{self, Start, ViewMut};

/// `x W + b`, where the gradient of a frozen weight or bias is never formed.
///
/// # Shapes
///
/// - x: `[.., d_in]`
/// - weight: `[d_in, d_out]`, in any strides: a transposed view is used without a copy
/// - bias: `[d_out]`
/// - result: `[.., d_out]`
///
/// # Panics
///
/// When the last dimension of `x`, the weight and the bias do not fit together.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [d_in, d_out] = weight.dims();
    let width = x.dims()[D - 1];
    assert_eq!(
        width, d_in,
        "`x` ends in {width}, expected `d_in` = {d_in} of the weight"
    );
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => {
            let length = bias.dims()[0];
            assert_eq!(
                length, d_out,
                "`bias` has {length} elements, expected `d_out` = {d_out}"
            );
            <Dispatch as LinearOps>::linear_bias(x, weight, bias.into_dispatch())
        }
        None => <Dispatch as LinearOps>::linear_plain(x, weight),
    })
}

/// `y + x W`: a narrow product added to a wide one in place, as a low-rank update is.
///
/// # Shapes
///
/// - y: `[.., d_out]`
/// - x: `[.., d_in]`
/// - weight: `[d_in, d_out]`
/// - result: `[.., d_out]`
///
/// # Panics
///
/// When shapes do not fit together.
pub fn linear_onto<const D: usize>(y: Tensor<D>, x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let [d_in, d_out] = weight.dims();
    let mut expected = x.dims();
    assert_eq!(
        expected[D - 1],
        d_in,
        "last dimension of `x`, expected `d_in` of the weight"
    );
    expected[D - 1] = d_out;
    assert_eq!(
        y.dims(),
        expected,
        "shape of `y`, expected from `x` and `weight`"
    );
    Tensor::from_dispatch(<Dispatch as LinearOps>::linear_onto(
        y.into_dispatch(),
        x.into_dispatch(),
        weight.into_dispatch(),
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait LinearOps: Backend {
    /// `x W`, differentiable.
    fn linear_plain(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::linear::<Self>(x, weight)
    }

    /// `x W + b`, differentiable.
    fn linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::linear_bias::<Self>(x, weight, bias)
    }

    /// `y + x W`, differentiable.
    fn linear_onto(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::linear_onto::<Self>(y, x, weight)
    }

    /// `xᵀ grad`, the gradient of `weight` and laid out like it.
    fn linear_weight_grad(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::weight_grad::<Self>(x, grad)
    }

    /// The bias's gradient: the sum of `grad` over all rows.
    fn linear_bias_grad(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::bias_grad::<Self>(grad)
    }
}

/// The operations in terms of a backend's own.
mod composed {
    use super::*;

    pub(super) fn linear<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        let shape = flex::with_width(&x.shape(), weight.shape()[1]);
        B::float_reshape(B::float_matmul(rows::<B>(x), weight), shape)
    }

    pub(super) fn linear_bias<B: Backend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let width = bias.shape()[0];
        let shape = flex::with_width(&x.shape(), width);
        let bias = B::float_reshape(bias, Shape::new([1, width]));
        let y = B::float_add(B::float_matmul(rows::<B>(x), weight), bias);
        B::float_reshape(y, shape)
    }

    pub(super) fn linear_onto<B: Backend>(
        y: FloatTensor<B>,
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
    ) -> FloatTensor<B> {
        B::float_add(y, linear::<B>(x, weight))
    }

    pub(super) fn weight_grad<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> FloatTensor<B> {
        B::float_matmul(B::float_transpose(rows::<B>(x)), rows::<B>(grad))
    }

    pub(super) fn bias_grad<B: Backend>(grad: FloatTensor<B>) -> FloatTensor<B> {
        let [_, width] = flex::rows(&grad.shape());
        B::float_reshape(B::float_sum_dim(rows::<B>(grad), 0), Shape::new([width]))
    }

    fn rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let shape = Shape::new(flex::rows(&x.shape()));
        B::float_reshape(x, shape)
    }
}

impl LinearOps for NdArray {}

#[cfg(feature = "cuda")]
impl LinearOps for burn::backend::Cube {}

impl LinearOps for Flex {
    fn linear_plain(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x, &weight]) {
            return composed::linear::<Self>(x, weight);
        }
        let shape = flex::with_width(x.layout().shape(), weight.layout().shape()[1]);
        let (x, weight) = (flex::as_rows(x), flex::forward_strides(weight));
        let y = product::product(Start::Zero, flex::matrix(&x), &flex::matrix(&weight));
        flex::tensor(y, shape)
    }

    fn linear_bias(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x, &weight, &bias]) {
            return composed::linear_bias::<Self>(x, weight, bias);
        }
        let shape = flex::with_width(x.layout().shape(), weight.layout().shape()[1]);
        let (x, weight) = (flex::as_rows(x), flex::forward_strides(weight));
        let bias = flex::contiguous(bias);
        let start = Start::Row(flex::slice(&bias));
        let y = product::product(start, flex::matrix(&x), &flex::matrix(&weight));
        flex::tensor(y, shape)
    }

    fn linear_onto(y: FlexTensor, x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&y, &x, &weight]) {
            return composed::linear_onto::<Self>(y, x, weight);
        }
        let (x, weight) = (flex::as_rows(x), flex::forward_strides(weight));
        let mut y = flex::owned(y);
        let out = ViewMut::rows(flex::slice_mut(&mut y), weight.layout().shape()[1]);
        product::multiply(out, Start::Out, flex::matrix(&x), &flex::matrix(&weight));
        y
    }

    fn linear_weight_grad(x: FlexTensor, grad: FlexTensor, weight: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x, &grad]) {
            return composed::weight_grad::<Self>(x, grad);
        }
        let (x, grad) = (flex::as_rows(x), flex::as_rows(grad));
        let (x, grad) = (flex::matrix(&x), flex::matrix(&grad));
        let strides = weight.layout().strides();
        if strides[0] >= strides[1] {
            flex::product(x.t(), grad)
        } else {
            flex::product(grad.t(), x).transpose(0, 1)
        }
    }

    fn linear_bias_grad(grad: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&grad]) {
            return composed::bias_grad::<Self>(grad);
        }
        let [_, width] = flex::rows(grad.layout().shape());
        let grad = flex::contiguous(grad);
        flex::tensor(
            flex::sum_rows(flex::slice(&grad), width),
            Shape::new([width]),
        )
    }
}

/// The saved input, if the weight needs it, and the weight, if anything does.
type Saved<B> = (Option<FloatTensor<B>>, FloatTensor<B>);

#[derive(Debug)]
struct LinearBackward;

impl LinearBackward {
    fn register<B: LinearOps>(
        (x, weight): Saved<B>,
        [x_id, weight_id]: [Option<NodeId>; 2],
        grad: FloatTensor<B>,
        grads: &mut Gradients,
    ) {
        if let (Some(id), Some(x)) = (weight_id, x) {
            let grad = B::linear_weight_grad(x, grad.clone(), weight.clone());
            grads.register::<B>(id, grad);
        }
        if let Some(id) = x_id {
            grads.register::<B>(id, B::linear_plain(grad, B::float_transpose(weight)));
        }
    }
}

impl<B: LinearOps> Backward<B, 2> for LinearBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Saved<B>, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let parents = ops
            .parents
            .each_ref()
            .map(|node| node.as_ref().map(|n| n.id));
        let grad = grads.consume::<B>(&ops.node);
        Self::register::<B>(ops.state, parents, grad, grads);
    }
}

impl<B: LinearOps> Backward<B, 3> for LinearBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Saved<B>, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, weight, bias] = ops
            .parents
            .each_ref()
            .map(|node| node.as_ref().map(|n| n.id));
        let grad = grads.consume::<B>(&ops.node);
        if let Some(id) = bias {
            grads.register::<B>(id, B::linear_bias_grad(grad.clone()));
        }
        Self::register::<B>(ops.state, [x, weight], grad, grads);
    }
}

#[derive(Debug)]
struct OntoBackward;

impl<B: LinearOps> Backward<B, 3> for OntoBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Saved<B>, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [y, x, weight] = ops
            .parents
            .each_ref()
            .map(|node| node.as_ref().map(|n| n.id));
        let grad = grads.consume::<B>(&ops.node);
        LinearBackward::register::<B>(ops.state, [x, weight], grad.clone(), grads);
        if let Some(id) = y {
            grads.register::<B>(id, grad);
        }
    }
}

impl<B: LinearOps, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linear_onto(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let keep_x = weight.is_tracked();
        let prep = OntoBackward
            .prepare::<C>([y.node(), x.node(), weight.node()])
            .compute_bound()
            .stateful();
        let [y, x, weight] = [y, x, weight].map(|tensor| tensor.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let saved = (keep_x.then(|| x.clone()), weight.clone());
                prep.finish(saved, B::linear_onto(y, x, weight))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::linear_onto(y, x, weight)),
        }
    }

    fn linear_plain(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let keep_x = weight.is_tracked();
        let prep = LinearBackward
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful();
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let saved = (keep_x.then(|| x.clone()), weight.clone());
                prep.finish(saved, B::linear_plain(x, weight))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::linear_plain(x, weight)),
        }
    }

    fn linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let keep_x = weight.is_tracked();
        let prep = LinearBackward
            .prepare::<C>([x.node(), weight.node(), bias.node()])
            .compute_bound()
            .stateful();
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let bias = bias.into_primitive();
        match prep {
            OpsKind::Tracked(prep) => {
                let saved = (keep_x.then(|| x.clone()), weight.clone());
                prep.finish(saved, B::linear_bias(x, weight, bias))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::linear_bias(x, weight, bias)),
        }
    }
}

#[cfg(test)]
mod tests;
