//! Attention over one row that holds several texts, each of which sees itself alone: no padding is
//! computed, and no pair of texts.

use core::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Shape, Slice, Tensor};

use super::qkv::split;
use super::{AttentionOps, AttentionSpec, fused};
use crate::flex;

/// Where the texts of a packed row lie: one after the other, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// Queries and keys of every text.
    lengths: Arc<[[usize; 2]]>,
}

impl Texts {
    /// Texts of these lengths.
    ///
    /// # Panics
    /// If there is none, or one is empty.
    pub fn new(lengths: &[usize]) -> Self {
        assert!(
            !lengths.is_empty() && !lengths.contains(&0),
            "a packed row holds at least one text, and none is empty"
        );
        Self {
            lengths: lengths.iter().map(|n| [*n, *n]).collect(),
        }
    }

    /// The same texts with so many keys more before those of each.
    #[must_use]
    pub fn with_keys_before(&self, n: usize) -> Self {
        let lengths = self
            .lengths
            .iter()
            .map(|[queries, keys]| [*queries, keys + n]);
        Self {
            lengths: lengths.collect(),
        }
    }

    /// The queries and the keys of every text by their places in the row.
    pub fn places(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        self.lengths.iter().scan([0; 2], |end, [queries, keys]| {
            let [q, k] = *end;
            *end = [q + queries, k + keys];
            Some((q..end[0], k..end[1]))
        })
    }

    /// All queries and all keys.
    pub(super) fn totals(&self) -> [usize; 2] {
        let sum = |[q, k]: [usize; 2], [queries, keys]: &[usize; 2]| [q + queries, k + keys];
        self.lengths.iter().fold([0; 2], sum)
    }
}

/// Attention within every text of a packed row; otherwise as [`attention`](super::attention).
///
/// # Shapes
///
/// - q: `[1, queries, heads * dh]`
/// - k, v: `[1, keys, kv_heads * dh]`
/// - result: `[1, queries, heads * dh]`
///
/// # Panics
///
/// When `kv_heads` does not divide `heads`, or shapes do not fit together.
pub fn attention_packed(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    spec: &AttentionSpec,
    texts: &Texts,
) -> Tensor<3> {
    let [_, _, width] = q.dims();
    spec.check_heads(width);
    let [queries, keys] = texts.totals();
    let kv_width = width / spec.heads * spec.kv_heads;
    let rows = [("q", q.dims(), [1, queries, width])].into_iter();
    let others = [("k", k.dims()), ("v", v.dims())];
    let others = others.map(|(name, dims)| (name, dims, [1, keys, kv_width]));
    for (name, dims, expected) in rows.chain(others) {
        assert_eq!(dims, expected, "shape of `{name}`, expected from the texts");
    }
    Tensor::from_dispatch(<Dispatch as PackedOps>::packed(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        *spec,
        texts.clone(),
    ))
}

/// The same where queries, keys and values come from one fused projection; otherwise as
/// [`attention_qkv`](super::attention_qkv).
///
/// # Shapes
///
/// - qkv: `[1, s, (heads + 2 * kv_heads) * dh]`, queries first, then keys, then values
/// - result: `[1, s, heads * dh]`
///
/// # Panics
///
/// When `kv_heads` does not divide `heads`, or shapes do not fit together.
pub fn attention_qkv_packed(qkv: Tensor<3>, spec: &AttentionSpec, texts: &Texts) -> Tensor<3> {
    let [rows, length, width] = qkv.dims();
    let parts = spec.heads + 2 * spec.kv_heads;
    spec.check_heads(width / parts * spec.heads);
    assert!(
        width.is_multiple_of(parts),
        "the width {width} of `qkv` is no multiple of {parts}"
    );
    let [queries, keys] = texts.totals();
    assert_eq!(
        ([rows, length], [1, length]),
        ([1, queries], [1, keys]),
        "shape of `qkv`, expected from the texts"
    );
    Tensor::from_dispatch(<Dispatch as PackedOps>::packed_qkv(
        qkv.into_dispatch(),
        *spec,
        texts.clone(),
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait PackedOps: AttentionOps {
    /// Attention within texts, differentiable.
    fn packed(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: AttentionSpec,
        texts: Texts,
    ) -> FloatTensor<Self> {
        Self::packed_saving(q, k, v, spec, texts).0
    }

    /// The same, and the logarithms of sums of one text after the other, each `[heads, queries]`.
    fn packed_saving(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: AttentionSpec,
        texts: Texts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        forward::<Self>([q, k, v], spec, &texts)
    }

    /// The gradients for `q`, `k` and `v`.
    fn packed_grad(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_sum: FloatTensor<Self>,
        spec: AttentionSpec,
        texts: Texts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        backward::<Self>(grad, [q, k, v], log_sum, spec, &texts)
    }

    /// Attention within texts of a fused projection, differentiable.
    fn packed_qkv(qkv: FloatTensor<Self>, spec: AttentionSpec, texts: Texts) -> FloatTensor<Self> {
        let [q, k, v] = split::<Self>(qkv, &spec);
        Self::packed(q, k, v, spec, texts)
    }

    /// The gradient for `qkv`.
    fn packed_qkv_grad(
        grad: FloatTensor<Self>,
        qkv: FloatTensor<Self>,
        log_sum: FloatTensor<Self>,
        spec: AttentionSpec,
        texts: Texts,
    ) -> FloatTensor<Self> {
        joined_grad::<Self>(grad, qkv, log_sum, spec, texts)
    }
}

fn joined_grad<B: PackedOps>(
    grad: FloatTensor<B>,
    qkv: FloatTensor<B>,
    log_sum: FloatTensor<B>,
    spec: AttentionSpec,
    texts: Texts,
) -> FloatTensor<B> {
    let [q, k, v] = split::<B>(qkv, &spec);
    let (dq, dk, dv) = B::packed_grad(grad, q, k, v, log_sum, spec, texts);
    B::float_cat(vec![dq, dk, dv], 2)
}

/// These rows of `[1, s, d]`; a view on the CPU.
pub(super) fn rows<B: Backend>(x: &FloatTensor<B>, places: &Range<usize>) -> FloatTensor<B> {
    let slices = [
        Slice::from(..),
        Slice::from(places.clone()),
        Slice::from(..),
    ];
    B::float_slice(x.clone(), &slices)
}

/// A mask that hides no key of a text.
fn all_seen<B: Backend>(k: &FloatTensor<B>) -> FloatTensor<B> {
    let shape = Shape::new([1, k.shape()[1]]);
    B::float_ones(shape, &k.device(), k.dtype().into())
}

/// Text by text in terms of attention without texts.
fn forward<B: AttentionOps>(
    [q, k, v]: [FloatTensor<B>; 3],
    spec: AttentionSpec,
    texts: &Texts,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (mut outs, mut sums) = (Vec::new(), Vec::new());
    for (queries, keys) in texts.places() {
        let (k, v) = (rows::<B>(&k, &keys), rows::<B>(&v, &keys));
        let mask = all_seen::<B>(&k);
        let q = rows::<B>(&q, &queries);
        let (out, sum) = B::attention_saving(q, k, v, mask, spec);
        outs.push(out);
        sums.push(B::float_reshape(
            sum,
            Shape::new([spec.heads * queries.len()]),
        ));
    }
    (B::float_cat(outs, 1), B::float_cat(sums, 0))
}

fn backward<B: AttentionOps>(
    grad: FloatTensor<B>,
    [q, k, v]: [FloatTensor<B>; 3],
    log_sum: FloatTensor<B>,
    spec: AttentionSpec,
    texts: &Texts,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let [mut dqs, mut dks, mut dvs] = [const { Vec::new() }; 3];
    for (queries, keys) in texts.places() {
        let sums = Slice::from(queries.start * spec.heads..queries.end * spec.heads);
        let sum = B::float_slice(log_sum.clone(), &[sums]);
        let sum = B::float_reshape(sum, Shape::new([1, spec.heads, queries.len()]));
        let (k, v) = (rows::<B>(&k, &keys), rows::<B>(&v, &keys));
        let (q, grad) = (rows::<B>(&q, &queries), rows::<B>(&grad, &queries));
        let mask = all_seen::<B>(&k);
        let (dq, dk, dv) = B::attention_grad(grad, q, k, v, mask, sum, spec);
        dqs.push(dq);
        dks.push(dk);
        dvs.push(dv);
    }
    let [dq, dk, dv] = [dqs, dks, dvs].map(|parts| B::float_cat(parts, 1));
    (dq, dk, dv)
}

impl PackedOps for NdArray {}

#[cfg(feature = "cuda")]
impl PackedOps for burn::backend::Cube {}

impl PackedOps for Flex {
    fn packed_saving(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        spec: AttentionSpec,
        texts: Texts,
    ) -> (FlexTensor, FlexTensor) {
        if flex::all_f32(&[&q, &k, &v]) {
            fused::forward_packed([q, k, v], spec, &texts)
        } else {
            forward::<Self>([q, k, v], spec, &texts)
        }
    }

    fn packed_grad(
        grad: FlexTensor,
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        log_sum: FlexTensor,
        spec: AttentionSpec,
        texts: Texts,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if flex::all_f32(&[&grad, &q, &k, &v]) {
            fused::backward_packed(grad, [q, k, v], log_sum, spec, &texts)
        } else {
            backward::<Self>(grad, [q, k, v], log_sum, spec, &texts)
        }
    }

    fn packed_qkv_grad(
        grad: FlexTensor,
        qkv: FlexTensor,
        log_sum: FlexTensor,
        spec: AttentionSpec,
        texts: Texts,
    ) -> FlexTensor {
        if flex::all_f32(&[&grad, &qkv]) {
            let parts = split::<Self>(qkv, &spec);
            fused::backward_packed_joined(grad, parts, log_sum, spec, &texts)
        } else {
            joined_grad::<Self>(grad, qkv, log_sum, spec, texts)
        }
    }
}

#[derive(Debug)]
struct PackedBackward;

impl<B: PackedOps> Backward<B, 3> for PackedBackward {
    /// q, k and v, and the logarithms of sums.
    type State = ([FloatTensor<B>; 3], FloatTensor<B>, AttentionSpec, Texts);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([q, k, v], log_sum, spec, texts) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (dq, dk, dv) = B::packed_grad(grad, q, k, v, log_sum, spec, texts);
        for (node, grad) in ops.parents.into_iter().zip([dq, dk, dv]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct PackedQkvBackward;

impl<B: PackedOps> Backward<B, 1> for PackedQkvBackward {
    /// The input, and the logarithms of sums.
    type State = (FloatTensor<B>, FloatTensor<B>, AttentionSpec, Texts);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (qkv, log_sum, spec, texts) = ops.state;
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            let grad = B::packed_qkv_grad(grad, qkv, log_sum, spec, texts);
            grads.register::<B>(node.id, grad);
        }
    }
}

impl<B: PackedOps, C: CheckpointStrategy> PackedOps for Autodiff<B, C> {
    fn packed(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: AttentionSpec,
        texts: Texts,
    ) -> FloatTensor<Self> {
        let prep = PackedBackward
            .prepare::<C>([q.node(), k.node(), v.node()])
            .compute_bound()
            .stateful();
        let [q, k, v] = [q, k, v].map(|t| t.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let saved = [q.clone(), k.clone(), v.clone()];
                let (out, log_sum) = B::packed_saving(q, k, v, spec, texts.clone());
                prep.finish((saved, log_sum, spec, texts), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::packed(q, k, v, spec, texts)),
        }
    }

    fn packed_qkv(qkv: FloatTensor<Self>, spec: AttentionSpec, texts: Texts) -> FloatTensor<Self> {
        let prep = PackedQkvBackward
            .prepare::<C>([qkv.node()])
            .compute_bound()
            .stateful();
        let qkv = qkv.into_primitive();
        match prep {
            OpsKind::Tracked(prep) => {
                let [q, k, v] = split::<B>(qkv.clone(), &spec);
                let (out, log_sum) = B::packed_saving(q, k, v, spec, texts.clone());
                prep.finish((qkv, log_sum, spec, texts), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::packed_qkv(qkv, spec, texts)),
        }
    }
}
