//! Attention on the output of one fused projection.
//!
//! Narrowing that output into queries, keys and values is free, but its backward pass clears and
//! adds three tensors of the full width. Here the three gradients are written in place instead.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Slice, Tensor};

use super::{AttentionOps, AttentionSpec, fused, key_mask_or_ones};
use crate::flex;

/// [Attention](super::attention) whose queries, keys and values come from one fused projection.
///
/// # Shapes
///
/// - qkv: `[b, s, (heads + 2 * kv_heads) * dh]`, queries first, then keys, then values
/// - key_mask: `[b, s]`, 1 where the key may be seen, 0 where it is padding
/// - result: `[b, s, heads * dh]`
///
/// # Panics
///
/// When `kv_heads` does not divide `heads`, or shapes do not fit together.
pub fn attention_qkv(
    qkv: Tensor<3>,
    spec: &AttentionSpec,
    key_mask: Option<Tensor<2>>,
) -> Tensor<3> {
    let AttentionSpec {
        heads, kv_heads, ..
    } = *spec;
    let [_, _, width] = qkv.dims();
    let parts = heads + 2 * kv_heads;
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads) && width.is_multiple_of(parts),
        "`kv_heads` = {kv_heads} must divide `heads` = {heads}, and `heads + 2 * kv_heads` = \
         {parts} the width {width} of `qkv`"
    );
    let mask = key_mask_or_ones(key_mask, &qkv);
    Tensor::from_dispatch(<Dispatch as QkvOps>::attention_qkv(
        qkv.into_dispatch(),
        mask.into_dispatch(),
        *spec,
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait QkvOps: AttentionOps {
    /// Attention, differentiable.
    fn attention_qkv(
        qkv: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        let [q, k, v] = split::<Self>(qkv, &spec);
        Self::attention_heads(q, k, v, mask, spec)
    }

    /// The gradient for `qkv`.
    fn attention_qkv_grad(
        grad: FloatTensor<Self>,
        qkv: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        log_sum: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        joined_grad::<Self>(grad, qkv, mask, log_sum, spec)
    }
}

fn joined_grad<B: AttentionOps>(
    grad: FloatTensor<B>,
    qkv: FloatTensor<B>,
    mask: FloatTensor<B>,
    log_sum: FloatTensor<B>,
    spec: AttentionSpec,
) -> FloatTensor<B> {
    let [q, k, v] = split::<B>(qkv, &spec);
    let (dq, dk, dv) = B::attention_grad(grad, q, k, v, mask, log_sum, spec);
    B::float_cat(vec![dq, dk, dv], 2)
}

/// Queries, keys and values; views of `qkv` on the CPU.
pub(super) fn split<B: Backend>(qkv: FloatTensor<B>, spec: &AttentionSpec) -> [FloatTensor<B>; 3] {
    let (heads, kv_heads) = (spec.heads, spec.kv_heads);
    let dh = qkv.shape()[2] / (heads + 2 * kv_heads);
    let part = |start: usize, heads: usize| {
        let columns = Slice::from(start * dh..(start + heads) * dh);
        B::float_slice(qkv.clone(), &[Slice::from(..), Slice::from(..), columns])
    };
    [
        part(0, heads),
        part(heads, kv_heads),
        part(heads + kv_heads, kv_heads),
    ]
}

impl QkvOps for NdArray {}

#[cfg(feature = "cuda")]
impl QkvOps for burn::backend::Cube {}

impl QkvOps for Flex {
    fn attention_qkv_grad(
        grad: FlexTensor,
        qkv: FlexTensor,
        mask: FlexTensor,
        log_sum: FlexTensor,
        spec: AttentionSpec,
    ) -> FlexTensor {
        if flex::all_f32(&[&grad, &qkv, &mask]) {
            let parts = split::<Self>(qkv, &spec);
            fused::backward_joined(grad, parts, mask, log_sum, spec)
        } else {
            joined_grad::<Self>(grad, qkv, mask, log_sum, spec)
        }
    }
}

#[derive(Debug)]
struct QkvBackward;

impl<B: QkvOps> Backward<B, 1> for QkvBackward {
    /// The input, the mask, and the logarithms of sums.
    type State = (
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        AttentionSpec,
    );

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (qkv, mask, log_sum, spec) = ops.state;
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            let grad = B::attention_qkv_grad(grad, qkv, mask, log_sum, spec);
            grads.register::<B>(node.id, grad);
        }
    }
}

impl<B: QkvOps, C: CheckpointStrategy> QkvOps for Autodiff<B, C> {
    fn attention_qkv(
        qkv: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        let prep = QkvBackward
            .prepare::<C>([qkv.node()])
            .compute_bound()
            .stateful();
        let (qkv, mask) = (qkv.into_primitive(), mask.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let [q, k, v] = split::<B>(qkv.clone(), &spec);
                let (out, log_sum) = B::attention_saving(q, k, v, mask.clone(), spec);
                prep.finish((qkv, mask, log_sum, spec), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::attention_qkv(qkv, mask, spec)),
        }
    }
}
