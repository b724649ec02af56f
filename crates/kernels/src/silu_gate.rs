//! The gate of gated feed-forward blocks.
//!
//! Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202 (SwiGLU).

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, NdArray, backend_extension};
use burn::tensor::Tensor;

use crate::{buffer, flex, simd};

/// `silu(gate) * up`, with `silu(x) = x / (1 + e^-x)`.
///
/// # Panics
///
/// When the shapes differ.
pub fn silu_gate<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(
        gate.dims(),
        up.dims(),
        "shape of `gate`, expected from `up`"
    );
    Tensor::from_dispatch(<Dispatch as GateOps>::silu_gated(
        gate.into_dispatch(),
        up.into_dispatch(),
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait GateOps: Backend {
    /// `silu(gate) * up`, differentiable.
    fn silu_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::forward::<Self>(gate, up)
    }

    /// The gradient for `gate`.
    fn silu_gated_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::grad::<Self>(gate, up, grad)
    }
}

/// The operations in terms of a backend's own.
mod composed {
    use super::*;

    pub(super) fn forward<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
        let open = B::sigmoid(gate.clone());
        B::float_mul(B::float_mul(gate, open), up)
    }

    pub(super) fn grad<B: Backend>(
        gate: FloatTensor<B>,
        up: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> FloatTensor<B> {
        // s + x s (1 - s), with s the logistic function.
        let open = B::sigmoid(gate.clone());
        let closed = B::float_add_scalar(B::float_neg(open.clone()), 1.into());
        let slope = B::float_add_scalar(B::float_mul(gate, closed), 1.into());
        B::float_mul(B::float_mul(grad, up), B::float_mul(open, slope))
    }
}

impl GateOps for NdArray {}

#[cfg(feature = "cuda")]
impl GateOps for burn::backend::Cube {}

/// Elements that a thread takes at a time: inputs and output fit into the first-level cache.
const PART: usize = 2048;

impl GateOps for Flex {
    fn silu_gated(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&gate, &up]) {
            return composed::forward::<Self>(gate, up);
        }
        let [gate, up] = [gate, up].map(flex::contiguous);
        let [gates, ups] = [&gate, &up].map(flex::slice);
        let out = buffer::fill_parts(gates.len(), PART, |start, out| {
            let part = start..start + out.len();
            simd::silu_gate(&gates[part.clone()], &ups[part], out);
        });
        flex::tensor(out, gate.layout().shape().clone())
    }

    fn silu_gated_grad(gate: FlexTensor, up: FlexTensor, grad: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&gate, &up, &grad]) {
            return composed::grad::<Self>(gate, up, grad);
        }
        let [gate, up, grad] = [gate, up, grad].map(flex::contiguous);
        let [gates, ups, grads] = [&gate, &up, &grad].map(flex::slice);
        let out = buffer::fill_parts(gates.len(), PART, |start, out| {
            let part = start..start + out.len();
            let (gates, ups) = (&gates[part.clone()], &ups[part.clone()]);
            simd::silu_gate_backward_gate(gates, ups, &grads[part], out);
        });
        flex::tensor(out, gate.layout().shape().clone())
    }
}

#[derive(Debug)]
struct GateBackward;

impl<B: GateOps> Backward<B, 2> for GateBackward {
    /// Both inputs; the product's factors are cheaper to compute again than to keep.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up) = ops.state;
        let [gate_node, up_node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = up_node {
            // Linear in `up`: its gradient is the same product with the gradient in its place.
            let dup = B::silu_gated(gate.clone(), grad.clone());
            grads.register::<B>(node.id, dup);
        }
        if let Some(node) = gate_node {
            grads.register::<B>(node.id, B::silu_gated_grad(gate, up, grad));
        }
    }
}

impl<B: GateOps, C: CheckpointStrategy> GateOps for Autodiff<B, C> {
    fn silu_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = GateBackward
            .prepare::<C>([gate.node(), up.node()])
            .compute_bound()
            .stateful();
        let [gate, up] = [gate, up].map(|t| t.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let state = (gate.clone(), up.clone());
                prep.finish(state, B::silu_gated(gate, up))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::silu_gated(gate, up)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Case, leaf};
    use crate::{plain, silu_gate};

    #[test]
    fn values_and_gradients_match_the_plain_form_on_any_shape_and_view() {
        for case in Case::all() {
            for shape in [[1, 2, 3], [3, 5, 7], [4, 33, 65]] {
                let (gate, up) = (case.leaf(shape, true), case.leaf(shape, true));
                let view = || (gate.clone() * 5).swap_dims(0, 2);
                let other = || up.clone().swap_dims(0, 2);
                let leaves = [leaf(&gate), leaf(&up)];
                let expected = plain::silu_gate(view(), other());
                testing::assert_same(&case, silu_gate(view(), other()), expected, &leaves, 2e-6);
            }
        }
    }

    #[test]
    fn far_tails_stay_finite() {
        for case in Case::all() {
            let gate = (case.random([4, 9]) * 1e4).set_require_grad(true);
            let up = case.random([4, 9]);
            let fused = silu_gate(gate.clone(), up.clone());
            let expected = plain::silu_gate(gate.clone(), up);
            testing::assert_same(&case, fused, expected, &[leaf(&gate)], 2e-6);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let case = &Case::all()[1];
        let (gate, up) = (case.leaf([3, 5], true), case.leaf([3, 5], true));
        let weights = case.random([3, 5]);
        let loss = |gate, up| (silu_gate(gate, up) * weights.clone()).sum();
        let grads = loss(gate.clone(), up.clone()).backward();
        let step = case.random([3, 5]);
        let along = (gate.grad(&grads).unwrap() * step.clone().inner()).sum();
        let along = along.into_scalar::<f64>();
        let at = |h: f64| loss(gate.clone() + step.clone() * h, up.clone()).into_scalar::<f64>();
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!(
            (along - difference).abs() < 1e-8,
            "{along} is not {difference}"
        );
    }

    #[test]
    fn only_what_is_trainable_receives_a_gradient() {
        for case in Case::all() {
            let (gate, up) = (case.leaf([2, 3], false), case.leaf([2, 3], true));
            let grads = silu_gate(gate.clone(), up.clone()).sum().backward();
            assert!(gate.grad(&grads).is_none() && up.grad(&grads).is_some());
        }
    }
}
