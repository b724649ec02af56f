//! The core of multi-head attention.

mod composed;
mod fused;
mod packed;
#[cfg(test)]
mod packed_tests;
mod qkv;
#[cfg(test)]
mod tests;

use core::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, NdArray, backend_extension};
use burn::tensor::Tensor;

use crate::flex;

pub use packed::{Texts, attention_packed, attention_qkv_packed};
pub use qkv::attention_qkv;

/// What an attention operation needs to know besides its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`, each serves a group of query heads.
    pub kv_heads: usize,
    /// Factor on the products of queries and keys, usually `1 / sqrt(dh)`.
    pub scale: f64,
    /// Whether query `i` sees key `j` only when `j <= i + (sk - sq)`.
    pub causal: bool,
    /// How many keys, its own place included, a query sees at most (a sliding window): query `i`
    /// sees key `j` only when `j > i + (sk - sq) - window`.
    pub window: Option<usize>,
}

impl AttentionSpec {
    /// Refuses heads that do not fit together or into a width.
    fn check_heads(&self, width: usize) {
        let Self {
            heads, kv_heads, ..
        } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads) && width.is_multiple_of(heads),
            "`kv_heads` = {kv_heads} must divide `heads` = {heads}, which must divide the width \
             {width}"
        );
    }

    /// The keys that query `i` of `sq` may see among `sk`, padding aside.
    fn visible(&self, i: usize, sq: usize, sk: usize) -> Range<usize> {
        let end = if self.causal {
            (i + 1 + sk).saturating_sub(sq).min(sk)
        } else {
            sk
        };
        let start = self.window.map_or(0, |window| {
            (i + 1 + sk).saturating_sub(window.saturating_add(sq))
        });
        start.min(end)..end
    }
}

/// Multi-head attention: `softmax(scale * q kᵀ) v` for each head.
///
/// Queries that see no key at all give zeros.
///
/// # Shapes
///
/// - q: `[b, sq, heads * dh]`
/// - k, v: `[b, sk, kv_heads * dh]`; all three may be views into one fused tensor
/// - key_mask: `[b, sk]`, 1 where the key may be seen, 0 where it is padding
/// - result: `[b, sq, heads * dh]`
///
/// # Panics
///
/// When `kv_heads` does not divide `heads`, or shapes do not fit together.
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    spec: &AttentionSpec,
    key_mask: Option<Tensor<2>>,
) -> Tensor<3> {
    let [batch, _, width] = q.dims();
    let sk = k.dims()[1];
    let AttentionSpec {
        heads, kv_heads, ..
    } = *spec;
    spec.check_heads(width);
    let expected = [batch, sk, width / heads * kv_heads];
    for (name, dims) in [("k", k.dims()), ("v", v.dims())] {
        assert_eq!(
            dims, expected,
            "shape of `{name}`, expected from `q` and the heads"
        );
    }
    let mask = key_mask_or_ones(key_mask, &k);
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attention_heads(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        mask.into_dispatch(),
        *spec,
    ))
}

/// The mask in the type of `k`. Without a mask every key may be seen: `[b, sk]` ones cost nothing
/// beside the scores.
fn key_mask_or_ones(mask: Option<Tensor<2>>, k: &Tensor<3>) -> Tensor<2> {
    let [batch, sk, _] = k.dims();
    let Some(mask) = mask else {
        return Tensor::ones([batch, sk], (&k.device(), k.dtype()));
    };
    let dims = mask.dims();
    assert_eq!(
        dims,
        [batch, sk],
        "shape of `key_mask`, expected from the keys"
    );
    mask.cast(k.dtype())
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait AttentionOps: Backend {
    /// Attention, differentiable.
    fn attention_heads(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        Self::attention_saving(q, k, v, mask, spec).0
    }

    /// Attention, and for each head and query (`[b, heads, sq]`) the logarithm of the sum of the
    /// exponentials of its scores, from which the probabilities can be computed again.
    fn attention_saving(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::forward::<Self>(q, k, v, mask, spec)
    }

    /// The gradients for `q`, `k` and `v`.
    fn attention_grad(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        log_sum: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::backward::<Self>(grad, [q, k, v], mask, log_sum, spec)
    }
}

impl AttentionOps for NdArray {}

#[cfg(feature = "cuda")]
impl AttentionOps for burn::backend::Cube {}

impl AttentionOps for Flex {
    fn attention_saving(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: FlexTensor,
        spec: AttentionSpec,
    ) -> (FlexTensor, FlexTensor) {
        if flex::all_f32(&[&q, &k, &v, &mask]) {
            fused::forward([q, k, v], mask, spec)
        } else {
            composed::forward::<Self>(q, k, v, mask, spec)
        }
    }

    fn attention_grad(
        grad: FlexTensor,
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        mask: FlexTensor,
        log_sum: FlexTensor,
        spec: AttentionSpec,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if flex::all_f32(&[&grad, &q, &k, &v, &mask]) {
            fused::backward(grad, [q, k, v], mask, log_sum, spec)
        } else {
            composed::backward::<Self>(grad, [q, k, v], mask, log_sum, spec)
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl<B: AttentionOps> Backward<B, 3> for AttentionBackward {
    /// q, k and v; the mask; the logarithms of sums. No matrix of scores is kept.
    type State = (
        [FloatTensor<B>; 3],
        FloatTensor<B>,
        FloatTensor<B>,
        AttentionSpec,
    );

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([q, k, v], mask, log_sum, spec) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (dq, dk, dv) = B::attention_grad(grad, q, k, v, mask, log_sum, spec);
        for (node, grad) in ops.parents.into_iter().zip([dq, dk, dv]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_heads(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        let prep = AttentionBackward
            .prepare::<C>([q.node(), k.node(), v.node()])
            .compute_bound()
            .stateful();
        let [q, k, v, mask] = [q, k, v, mask].map(|t| t.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let saved = [q.clone(), k.clone(), v.clone()];
                let (out, log_sum) = B::attention_saving(q, k, v, mask.clone(), spec);
                prep.finish((saved, mask, log_sum, spec), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::attention_heads(q, k, v, mask, spec)),
        }
    }
}
