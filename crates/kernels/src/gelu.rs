//! GELU, with the error function and by its tanh approximation.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, NdArray, backend_extension};
use burn::tensor::Tensor;

use crate::{buffer, flex, simd};

/// GELU with the error function, as BERT uses it: `x Φ(x)`.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as GeluOps>::gelu_erf(x.into_dispatch()))
}

/// GELU by its tanh approximation, as GPT-2 uses it (`gelu_new`).
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as GeluOps>::gelu_tanh(x.into_dispatch()))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait GeluOps: Backend {
    /// `x Φ(x)`, differentiable.
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu_erf::<Self>(x)
    }

    /// `grad * d(x Φ(x))/dx`.
    fn gelu_erf_grad(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu_erf_grad::<Self>(x, grad)
    }

    /// The tanh approximation, differentiable.
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu_tanh::<Self>(x)
    }

    /// `grad` times the derivative of the tanh approximation.
    fn gelu_tanh_grad(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu_tanh_grad::<Self>(x, grad)
    }
}

/// The operations in terms of a backend's own.
mod composed {
    use super::*;
    use core::f64::consts::{FRAC_1_SQRT_2, PI};

    const CUBIC: f64 = 0.044715;

    pub(super) fn gelu_erf<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        B::float_mul(x.clone(), cdf::<B>(x))
    }

    pub(super) fn gelu_erf_grad<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let square = B::float_mul(x.clone(), x.clone());
        let density = B::float_exp(B::float_mul_scalar(square, (-0.5).into()));
        let density = B::float_mul_scalar(density, (1.0 / (2.0 * PI).sqrt()).into());
        let slope = B::float_add(cdf::<B>(x.clone()), B::float_mul(x, density));
        B::float_mul(grad, slope)
    }

    pub(super) fn gelu_tanh<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let half = B::float_mul_scalar(
            B::float_add_scalar(tanh::<B>(x.clone()), 1.into()),
            0.5.into(),
        );
        B::float_mul(x, half)
    }

    pub(super) fn gelu_tanh_grad<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> FloatTensor<B> {
        // (1 + t) / 2 * (1 + x u' (1 - t)), with t = tanh(u), u' the derivative of u.
        let t = tanh::<B>(x.clone());
        let half = B::float_mul_scalar(B::float_add_scalar(t.clone(), 1.into()), 0.5.into());
        let square = B::float_mul(x.clone(), x.clone());
        let inner =
            B::float_add_scalar(B::float_mul_scalar(square, (3.0 * CUBIC).into()), 1.into());
        let inner = B::float_mul_scalar(inner, (2.0 / PI).sqrt().into());
        let rest = B::float_add_scalar(B::float_neg(t), 1.into());
        let rest = B::float_mul(B::float_mul(x, inner), rest);
        B::float_mul(
            grad,
            B::float_mul(half, B::float_add_scalar(rest, 1.into())),
        )
    }

    fn cdf<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let erf = B::float_erf(B::float_mul_scalar(x, FRAC_1_SQRT_2.into()));
        B::float_mul_scalar(B::float_add_scalar(erf, 1.into()), 0.5.into())
    }

    fn tanh<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let square = B::float_mul(x.clone(), x.clone());
        let inner = B::float_add_scalar(B::float_mul_scalar(square, CUBIC.into()), 1.into());
        let u = B::float_mul_scalar(B::float_mul(x, inner), (2.0 / PI).sqrt().into());
        B::float_tanh(u)
    }
}

impl GeluOps for NdArray {}

#[cfg(feature = "cuda")]
impl GeluOps for burn::backend::Cube {}

impl GeluOps for Flex {
    fn gelu_erf(x: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x]) {
            return composed::gelu_erf::<Self>(x);
        }
        map(x, simd::gelu)
    }

    fn gelu_erf_grad(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x, &grad]) {
            return composed::gelu_erf_grad::<Self>(x, grad);
        }
        zip(x, grad, simd::gelu_backward)
    }

    fn gelu_tanh(x: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x]) {
            return composed::gelu_tanh::<Self>(x);
        }
        map(x, simd::gelu_tanh)
    }

    fn gelu_tanh_grad(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x, &grad]) {
            return composed::gelu_tanh_grad::<Self>(x, grad);
        }
        zip(x, grad, simd::gelu_tanh_backward)
    }
}

/// Elements that a thread takes at a time: inputs and output fit into the first-level cache.
const PART: usize = 4096;

fn map(x: FlexTensor, kernel: fn(&[f32], &mut [f32])) -> FlexTensor {
    let x = flex::contiguous(x);
    let values = flex::slice(&x);
    let out = buffer::fill_parts(values.len(), PART, |start, out| {
        kernel(&values[start..start + out.len()], out);
    });
    flex::tensor(out, x.layout().shape().clone())
}

fn zip(x: FlexTensor, grad: FlexTensor, kernel: fn(&[f32], &[f32], &mut [f32])) -> FlexTensor {
    let (x, grad) = (flex::contiguous(x), flex::contiguous(grad));
    let (values, grads) = (flex::slice(&x), flex::slice(&grad));
    let out = buffer::fill_parts(values.len(), PART, |start, out| {
        let part = start..start + out.len();
        kernel(&values[part.clone()], &grads[part], out);
    });
    flex::tensor(out, x.layout().shape().clone())
}

#[derive(Debug)]
struct ErfBackward;

impl<B: GeluOps> Backward<B, 1> for ErfBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let x = ops.state;
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            grads.register::<B>(node.id, B::gelu_erf_grad(x, grad));
        }
    }
}

#[derive(Debug)]
struct TanhBackward;

impl<B: GeluOps> Backward<B, 1> for TanhBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let x = ops.state;
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            grads.register::<B>(node.id, B::gelu_tanh_grad(x, grad));
        }
    }
}

impl<B: GeluOps, C: CheckpointStrategy> GeluOps for Autodiff<B, C> {
    fn gelu_erf(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = ErfBackward.prepare::<C>([x.node()]);
        let x = x.into_primitive();
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x.clone(), B::gelu_erf(x)),
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_erf(x)),
        }
    }

    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = TanhBackward.prepare::<C>([x.node()]);
        let x = x.into_primitive();
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x.clone(), B::gelu_tanh(x)),
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_tanh(x)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Case, leaf};
    use crate::{gelu, gelu_tanh, plain};

    #[test]
    fn both_forms_match_the_plain_ones_on_any_shape_and_view() {
        for case in Case::all() {
            for shape in [[1, 2, 3], [3, 5, 7], [4, 33, 65]] {
                let x = case.leaf(shape, true);
                let view = || {
                    (x.clone() * 3)
                        .swap_dims(0, 2)
                        .narrow(1, 0, shape[1].div_ceil(2))
                };
                let leaves = [leaf(&x)];
                testing::assert_same(&case, gelu(view()), plain::gelu(view()), &leaves, 2e-6);
                testing::assert_same(
                    &case,
                    gelu_tanh(view()),
                    plain::gelu_tanh(view()),
                    &leaves,
                    2e-6,
                );
            }
        }
    }

    #[test]
    fn no_gradient_flows_where_none_is_asked_for() {
        for case in Case::all() {
            let x = case.leaf([2, 3], false);
            assert!(!gelu(x.clone()).is_require_grad());
            assert!(!gelu_tanh(x).is_require_grad());
        }
    }
}
