//! Attention in terms of a backend's own operations.
//!
//! Query heads that share a key head are laid out as one longer sequence of queries, so that
//! neither keys nor values are repeated, and their gradients sum over the group by themselves.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, IntDType, TensorMetadata};
use burn::tensor::{DType, Shape};

use super::AttentionSpec;

pub(super) fn forward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    mask: FloatTensor<B>,
    spec: AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [batch, sq] = [q.shape()[0], q.shape()[1]];
    let seen = seen::<B>(mask, sq, &spec);
    let q = split::<B>(q, spec.kv_heads, spec.heads / spec.kv_heads);
    let k = split::<B>(k, spec.kv_heads, 1);
    let v = split::<B>(v, spec.kv_heads, 1);
    let scores = scores::<B>(q, k, seen.clone(), spec.scale);
    let max = B::float_max_dim(scores.clone(), 3);
    let exp = B::float_mul(B::float_exp(B::float_sub(scores, max.clone())), seen);
    let sum = B::float_sum_dim(exp.clone(), 3);
    // A query that sees nothing has the sum 0; its probabilities are 0 all the same.
    let sum = B::float_clamp_min(sum, 1e-30.into());
    let out = B::float_matmul(B::float_div(exp, sum.clone()), v);
    let log_sum = B::float_add(max, B::float_log(sum));
    let log_sum = B::float_reshape(log_sum, Shape::new([batch, spec.heads, sq]));
    (merge::<B>(out, spec.heads / spec.kv_heads), log_sum)
}

pub(super) fn backward<B: Backend>(
    grad: FloatTensor<B>,
    [q, k, v]: [FloatTensor<B>; 3],
    mask: FloatTensor<B>,
    log_sum: FloatTensor<B>,
    spec: AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let [batch, sq] = [q.shape()[0], q.shape()[1]];
    let group = spec.heads / spec.kv_heads;
    let seen = seen::<B>(mask, sq, &spec);
    let q = split::<B>(q, spec.kv_heads, group);
    let grad = split::<B>(grad, spec.kv_heads, group);
    let k = split::<B>(k, spec.kv_heads, 1);
    let v = split::<B>(v, spec.kv_heads, 1);
    let log_sum = B::float_reshape(log_sum, Shape::new([batch, spec.kv_heads, group * sq, 1]));

    let scores = scores::<B>(q.clone(), k.clone(), seen.clone(), spec.scale);
    let p = B::float_mul(B::float_exp(B::float_sub(scores, log_sum)), seen);
    let dv = B::float_matmul(B::float_transpose(p.clone()), grad.clone());
    let dp = B::float_matmul(grad, B::float_transpose(v));
    let dot = B::float_sum_dim(B::float_mul(p.clone(), dp.clone()), 3);
    let ds = B::float_mul(p, B::float_sub(dp, dot));
    let ds = B::float_mul_scalar(ds, spec.scale.into());
    let dq = B::float_matmul(ds.clone(), k);
    let dk = B::float_matmul(B::float_transpose(ds), q);
    (merge::<B>(dq, group), merge::<B>(dk, 1), merge::<B>(dv, 1))
}

/// Scaled products, far below any other where they must not be seen.
fn scores<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    seen: FloatTensor<B>,
    scale: f64,
) -> FloatTensor<B> {
    // Finite, so that rows that see nothing stay free of NaN.
    let lowest = if q.dtype() == DType::F16 { 6e4 } else { 1e30 };
    let scores = B::float_mul_scalar(B::float_matmul(q, B::float_transpose(k)), scale.into());
    let hidden = B::float_add_scalar(seen.clone(), (-1.0).into());
    let hidden = B::float_mul_scalar(hidden, lowest.into());
    B::float_add(B::float_mul(scores, seen), hidden)
}

/// 1 where a query sees a key, 0 elsewhere: `[b, 1, group * sq, sk]`.
fn seen<B: Backend>(mask: FloatTensor<B>, sq: usize, spec: &AttentionSpec) -> FloatTensor<B> {
    let [batch, sk] = [mask.shape()[0], mask.shape()[1]];
    let group = spec.heads / spec.kv_heads;
    let full = [batch, 1, group, sq, sk];
    let mask_row = B::float_reshape(mask.clone(), Shape::new([batch, 1, 1, 1, sk]));
    let mut seen = B::float_expand(mask_row, Shape::new(full));
    let place = |from: i64, len: usize, shape: [usize; 5]| {
        let range = from..from + len as i64;
        let place = B::int_arange(range, &mask.device(), IntDType::I32);
        let place = B::int_into_float(place, mask.dtype().into());
        B::float_expand(B::float_reshape(place, Shape::new(shape)), Shape::new(full))
    };
    let keys = || place(0, sk, [1, 1, 1, 1, sk]);
    let queries = |from: i64| place(from + sk as i64 - sq as i64, sq, [1, 1, 1, sq, 1]);
    // Differences of places are whole numbers: 1 or more where a key is seen, else 0 or less.
    let mut narrow = |difference| {
        seen = B::float_mul(seen.clone(), B::float_clamp(difference, 0.into(), 1.into()));
    };
    if spec.causal {
        narrow(B::float_sub(queries(1), keys()));
    }
    // A window that holds every key hides none, however large it is.
    if let Some(window) = spec.window.filter(|window| *window < sk.max(sq)) {
        narrow(B::float_sub(keys(), queries(-(window as i64))));
    }
    B::float_reshape(seen, Shape::new([batch, 1, group * sq, sk]))
}

/// `[b, s, heads * group * dh]` to `[b, heads, group * s, dh]`.
fn split<B: Backend>(x: FloatTensor<B>, heads: usize, group: usize) -> FloatTensor<B> {
    let [batch, seq, width] = [0, 1, 2].map(|d| x.shape()[d]);
    let dh = width / (heads * group);
    let x = B::float_reshape(x, Shape::new([batch, seq, heads, group, dh]));
    let x = B::float_permute(x, &[0, 2, 3, 1, 4]);
    B::float_reshape(x, Shape::new([batch, heads, group * seq, dh]))
}

/// The inverse of [`split`].
fn merge<B: Backend>(x: FloatTensor<B>, group: usize) -> FloatTensor<B> {
    let [batch, heads, rows, dh] = [0, 1, 2, 3].map(|d| x.shape()[d]);
    let seq = rows / group;
    let x = B::float_reshape(x, Shape::new([batch, heads, group, seq, dh]));
    let x = B::float_permute(x, &[0, 3, 1, 2, 4]);
    B::float_reshape(x, Shape::new([batch, seq, heads * group * dh]))
}
