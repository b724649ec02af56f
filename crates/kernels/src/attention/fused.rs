//! Attention over plain slices: threads share out batches and heads, and take a block of queries
//! at a time, so that scores stay in the cache and keys out of sight of all of them are never read.

use core::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use super::AttentionSpec;
use crate::product::{self, View, ViewMut};
use crate::{flex, simd};

mod packed;

pub(super) use packed::{backward_packed, backward_packed_joined, forward_packed};

/// Queries whose scores are held at once.
const BLOCK: usize = 64;

/// Sizes of an attention operation.
#[derive(Clone, Copy)]
struct Sizes {
    spec: AttentionSpec,
    batch: usize,
    sq: usize,
    sk: usize,
    dh: usize,
}

/// A block of queries of one head: where it starts, its length, and the keys any of them may see.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    len: usize,
    first_key: usize,
    keys: usize,
}

impl Block {
    /// These rows of keys or values.
    fn of<'a>(&self, rows: View<'a>) -> View<'a> {
        rows.row_range(self.first_key, self.keys)
    }

    /// The places in a row of the block's scores that stand for these keys.
    fn places(&self, keys: &Range<usize>) -> Range<usize> {
        keys.start - self.first_key..keys.end - self.first_key
    }
}

/// Clears a row of scores but for these places.
fn keep(row: &mut [f32], places: &Range<usize>) {
    row[..places.start].fill(0.0);
    row[places.end..].fill(0.0);
}

impl Sizes {
    fn new(q: &FlexTensor, k: &FlexTensor, spec: AttentionSpec) -> Self {
        let (q, k) = (q.layout().shape(), k.layout().shape());
        Self {
            spec,
            batch: q[0],
            sq: q[1],
            sk: k[1],
            dh: q[2] / spec.heads,
        }
    }

    /// The blocks of queries that see at least one key.
    fn blocks(self) -> impl Iterator<Item = Block> {
        let block = move |start| {
            let len = BLOCK.min(self.sq - start);
            // Both ends of what a query sees only ever move on.
            let first_key = self.visible(start).start;
            let keys = self.visible(start + len - 1).end.saturating_sub(first_key);
            Block {
                start,
                len,
                first_key,
                keys,
            }
        };
        (0..self.sq)
            .step_by(BLOCK)
            .map(block)
            .filter(|b| b.keys > 0)
    }

    fn visible(self, query: usize) -> Range<usize> {
        self.spec.visible(query, self.sq, self.sk)
    }

    fn q_shape(self) -> [usize; 4] {
        [self.batch, self.sq, self.spec.heads, self.dh]
    }

    fn k_shape(self) -> [usize; 4] {
        [self.batch, self.sk, self.spec.kv_heads, self.dh]
    }

    /// Of queries, keys and values side by side.
    fn joined_shape(self) -> [usize; 4] {
        let heads = self.spec.heads + 2 * self.spec.kv_heads;
        [self.batch, self.sq, heads, self.dh]
    }
}

/// A zeroed tensor's elements for `[batch, seq, heads, dh]`.
fn zeros(shape: [usize; 4]) -> Vec<f32> {
    vec![0.0; shape.iter().product()]
}

fn tensor(data: Vec<f32>, [batch, seq, heads, dh]: [usize; 4]) -> FlexTensor {
    flex::tensor(data, Shape::new([batch, seq, heads * dh]))
}

/// `scale * q kᵀ` of a block, into the start of `scratch`.
fn scores<'s>(
    scratch: &'s mut Vec<f32>,
    q: View<'_>,
    k: View<'_>,
    scale: f64,
    block: Block,
) -> &'s mut [f32] {
    scratch.resize(scratch.len().max(block.len * block.keys), 0.0);
    let scores = &mut scratch[..block.len * block.keys];
    let q = q.row_range(block.start, block.len);
    let k = block.of(k).t();
    let out = ViewMut::rows(scores, block.keys);
    product::assign_here(out, scale as f32, q, k);
    scores
}

pub(super) fn forward(
    qkv: [FlexTensor; 3],
    mask: FlexTensor,
    spec: AttentionSpec,
) -> (FlexTensor, FlexTensor) {
    let qkv = qkv.map(flex::forward_strides);
    let mask = flex::contiguous(mask);
    let sizes = Sizes::new(&qkv[0], &qkv[1], spec);
    let mut out = zeros(sizes.q_shape());
    let mut log_sum = vec![0.0; sizes.batch * spec.heads * sizes.sq];
    forward_into(&mut out, &mut log_sum, &qkv, flex::slice(&mask), sizes);
    let log_sum = flex::tensor(log_sum, Shape::new([sizes.batch, spec.heads, sizes.sq]));
    (tensor(out, sizes.q_shape()), log_sum)
}

/// Fills the output and the logarithms of sums of all heads.
fn forward_into(
    out: &mut [f32],
    log_sum: &mut [f32],
    [q, k, v]: &[FlexTensor; 3],
    mask: &[f32],
    sizes: Sizes,
) {
    let Sizes {
        spec, sq, sk, dh, ..
    } = sizes;
    let heads = spec.heads;
    ViewMut::heads(out, sizes.q_shape())
        .into_par_iter()
        .zip(log_sum.par_chunks_mut(sq.max(1)))
        .enumerate()
        .for_each_init(Vec::new, |scratch, (i, (mut out, log_sum))| {
            let (b, h) = (i / heads, i % heads);
            let kv = h * spec.kv_heads / heads;
            let mask = &mask[b * sk..][..sk];
            let q = flex::head(q, b, h, dh);
            let (k, v) = (flex::head(k, b, kv, dh), flex::head(v, b, kv, dh));
            for block in sizes.blocks() {
                let scores = scores(scratch, q, k, spec.scale, block);
                for (r, row) in scores.chunks_exact_mut(block.keys).enumerate() {
                    let query = block.start + r;
                    let seen = sizes.visible(query);
                    let places = block.places(&seen);
                    log_sum[query] = simd::softmax_row(&mut row[places.clone()], &mask[seen]);
                    keep(row, &places);
                }
                let p = View::rows(scores, block.keys);
                let v = block.of(v);
                let out = out.row_range(block.start, block.len);
                product::assign_here(out, 1.0, p, v);
            }
        });
}

/// The gradients for queries, keys and values.
pub(super) fn backward(
    grad: FlexTensor,
    qkv: [FlexTensor; 3],
    mask: FlexTensor,
    log_sum: FlexTensor,
    spec: AttentionSpec,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let sizes = Sizes::new(&qkv[0], &qkv[1], spec);
    let (mut dq, mut dk, mut dv) = (
        zeros(sizes.q_shape()),
        zeros(sizes.k_shape()),
        zeros(sizes.k_shape()),
    );
    let views = [
        ViewMut::heads(&mut dq, sizes.q_shape()),
        ViewMut::heads(&mut dk, sizes.k_shape()),
        ViewMut::heads(&mut dv, sizes.k_shape()),
    ];
    let mask = flex::contiguous(mask);
    let kept = [flex::slice(&mask), flex::slice(&log_sum)];
    backward_into(views, grad, qkv, kept, sizes);
    (
        tensor(dq, sizes.q_shape()),
        tensor(dk, sizes.k_shape()),
        tensor(dv, sizes.k_shape()),
    )
}

/// The same gradients side by side in one tensor.
pub(super) fn backward_joined(
    grad: FlexTensor,
    qkv: [FlexTensor; 3],
    mask: FlexTensor,
    log_sum: FlexTensor,
    spec: AttentionSpec,
) -> FlexTensor {
    let sizes = Sizes::new(&qkv[0], &qkv[1], spec);
    let shape = sizes.joined_shape();
    let mut joined = zeros(shape);
    let mask = flex::contiguous(mask);
    let kept = [flex::slice(&mask), flex::slice(&log_sum)];
    backward_into(joined_views(&mut joined, sizes), grad, qkv, kept, sizes);
    tensor(joined, shape)
}

/// The heads of queries, keys and values that lie side by side.
fn joined_views(joined: &mut [f32], sizes: Sizes) -> [Vec<ViewMut<'_>>; 3] {
    let (heads, kv_heads) = (sizes.spec.heads, sizes.spec.kv_heads);
    let shape = sizes.joined_shape();
    let mut views = [Vec::new(), Vec::new(), Vec::new()];
    for (i, view) in ViewMut::heads(joined, shape).into_iter().enumerate() {
        let head = i % shape[2];
        views[usize::from(head >= heads) + usize::from(head >= heads + kv_heads)].push(view);
    }
    views
}

/// Fills the gradients of all heads, which are zero at first, given the mask and the logarithms of
/// sums.
fn backward_into(
    [mut dq, dk, dv]: [Vec<ViewMut<'_>>; 3],
    grad: FlexTensor,
    qkv: [FlexTensor; 3],
    [mask, log_sum]: [&[f32]; 2],
    sizes: Sizes,
) {
    let [q, k, v] = &qkv.map(flex::forward_strides);
    let grad = &flex::forward_strides(grad);
    let Sizes {
        spec, sq, sk, dh, ..
    } = sizes;
    let group = spec.heads / spec.kv_heads;
    // A thread takes a key head with all its query heads, since they add to the same gradients.
    dq.par_chunks_mut(group)
        .zip(dk)
        .zip(dv)
        .enumerate()
        .for_each_init(Default::default, |scratch, (i, ((dq, dk), dv))| {
            let (b, kv) = (i / spec.kv_heads, i % spec.kv_heads);
            let (k, v) = (flex::head(k, b, kv, dh), flex::head(v, b, kv, dh));
            let mask = &mask[b * sk..][..sk];
            let mut shared = KeyHead {
                sizes,
                k,
                v,
                mask,
                dk,
                dv,
            };
            for (j, dq) in dq.iter_mut().enumerate() {
                let h = kv * group + j;
                let log_sum = &log_sum[(b * spec.heads + h) * sq..][..sq];
                let (q, grad) = (flex::head(q, b, h, dh), flex::head(grad, b, h, dh));
                shared.backward(scratch, q, grad, log_sum, dq);
            }
        });
}

/// One key head, and the gradients that its query heads add to.
struct KeyHead<'a> {
    sizes: Sizes,
    k: View<'a>,
    v: View<'a>,
    mask: &'a [f32],
    dk: ViewMut<'a>,
    dv: ViewMut<'a>,
}

impl KeyHead<'_> {
    /// Gradients of one query head. The scratch holds probabilities and their gradients.
    fn backward(
        &mut self,
        (p, dp): &mut (Vec<f32>, Vec<f32>),
        q: View<'_>,
        grad: View<'_>,
        log_sum: &[f32],
        dq: &mut ViewMut<'_>,
    ) {
        let scale = self.sizes.spec.scale;
        for block in self.sizes.blocks() {
            let Block {
                start, len, keys, ..
            } = block;
            let p = scores(p, q, self.k, scale, block);
            // The gradient of the probabilities is a product of the same form as the scores.
            let ds = scores(dp, grad, self.v, 1.0, block);
            let rows = p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys));
            for (r, (p, ds)) in rows.enumerate() {
                let query = start + r;
                let seen = self.sizes.visible(query);
                let places = block.places(&seen);
                let seen_p = &mut p[places.clone()];
                simd::softmax_row_again(seen_p, &self.mask[seen], log_sum[query]);
                simd::softmax_row_backward(seen_p, &mut ds[places.clone()], scale as f32);
                keep(p, &places);
                keep(ds, &places);
            }
            let (p, ds) = (View::rows(p, keys), View::rows(ds, keys));
            let (q, grad) = (q.row_range(start, len), grad.row_range(start, len));
            let first = block.first_key;
            product::add_here(self.dv.row_range(first, keys), 1.0, p.t(), grad);
            product::add_here(self.dk.row_range(first, keys), 1.0, ds.t(), q);
            let k = block.of(self.k);
            product::assign_here(dq.row_range(start, len), 1.0, ds, k);
        }
    }
}
