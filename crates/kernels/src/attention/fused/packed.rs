//! The same over rows that hold several texts: the rows of a text are one stretch of memory, so that
//! every text is a batch of one.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use core::ops::Range;
use rayon::prelude::*;

use super::super::packed::{Texts, rows};
use super::{AttentionSpec, Sizes, ViewMut, backward_into, forward_into, joined_views};
use crate::flex;

/// One text's part of an operation.
struct Part {
    sizes: Sizes,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Part {
    fn all([q, k]: [&FlexTensor; 2], spec: AttentionSpec, texts: &Texts) -> Vec<Self> {
        let whole = Sizes::new(q, k, spec);
        let part = |(queries, keys): (Range<usize>, Range<usize>)| Self {
            sizes: Sizes {
                sq: queries.len(),
                sk: keys.len(),
                ..whole
            },
            queries,
            keys,
        };
        texts.places().map(part).collect()
    }

    /// The text's queries, keys and values.
    fn of(&self, [q, k, v]: &[FlexTensor; 3]) -> [FlexTensor; 3] {
        [
            rows::<Flex>(q, &self.queries),
            rows::<Flex>(k, &self.keys),
            rows::<Flex>(v, &self.keys),
        ]
    }
}

/// Splits a slice into consecutive parts of these lengths.
fn split(mut slice: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let parts = lengths.map(|length| {
        let (part, rest) = std::mem::take(&mut slice).split_at_mut(length);
        slice = rest;
        part
    });
    parts.collect()
}

/// A mask that hides no key of the longest text.
fn all_seen(parts: &[Part]) -> Vec<f32> {
    vec![1.0; parts.iter().map(|part| part.sizes.sk).max().unwrap_or(0)]
}

fn row(data: Vec<f32>, width: usize) -> FlexTensor {
    let rows = data.len() / width.max(1);
    flex::tensor(data, Shape::new([1, rows, width]))
}

fn width(tensor: &FlexTensor) -> usize {
    tensor.layout().shape()[2]
}

fn length(tensor: &FlexTensor) -> usize {
    tensor.layout().shape()[1]
}

pub(in super::super) fn forward_packed(
    qkv: [FlexTensor; 3],
    spec: AttentionSpec,
    texts: &Texts,
) -> (FlexTensor, FlexTensor) {
    let qkv = qkv.map(flex::forward_strides);
    let parts = Part::all([&qkv[0], &qkv[1]], spec, texts);
    let ones = all_seen(&parts);
    let (width, tokens) = (width(&qkv[0]), length(&qkv[0]));
    let mut out = vec![0.0; tokens * width];
    let mut log_sum = vec![0.0; tokens * spec.heads];
    let outs = split(&mut out, parts.iter().map(|p| p.sizes.sq * width));
    let sums = split(&mut log_sum, parts.iter().map(|p| p.sizes.sq * spec.heads));
    let work = parts.par_iter().zip(outs).zip(sums);
    work.for_each(|((part, out), log_sum)| {
        let mask = &ones[..part.sizes.sk];
        forward_into(out, log_sum, &part.of(&qkv), mask, part.sizes);
    });
    let log_sum = flex::tensor(log_sum, Shape::new([tokens * spec.heads]));
    (row(out, width), log_sum)
}

/// The gradients for queries, keys and values.
pub(in super::super) fn backward_packed(
    grad: FlexTensor,
    qkv: [FlexTensor; 3],
    log_sum: FlexTensor,
    spec: AttentionSpec,
    texts: &Texts,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let parts = Part::all([&qkv[0], &qkv[1]], spec, texts);
    let (q_width, k_width) = (width(&qkv[0]), width(&qkv[1]));
    let (queries, keys) = (length(&qkv[0]), length(&qkv[1]));
    let mut dq = vec![0.0; queries * q_width];
    let (mut dk, mut dv) = (vec![0.0; keys * k_width], vec![0.0; keys * k_width]);
    let of_queries = || parts.iter().map(|p| p.sizes.sq * q_width);
    let of_keys = || parts.iter().map(|p| p.sizes.sk * k_width);
    let slices = split(&mut dq, of_queries())
        .into_iter()
        .zip(split(&mut dk, of_keys()))
        .zip(split(&mut dv, of_keys()));
    let views: Vec<_> = slices
        .zip(&parts)
        .map(|(((dq, dk), dv), Part { sizes, .. })| {
            [
                ViewMut::heads(dq, sizes.q_shape()),
                ViewMut::heads(dk, sizes.k_shape()),
                ViewMut::heads(dv, sizes.k_shape()),
            ]
        })
        .collect();
    backward_parts(&parts, views, &grad, &qkv, &log_sum);
    (row(dq, q_width), row(dk, k_width), row(dv, k_width))
}

/// The same gradients side by side in one tensor.
pub(in super::super) fn backward_packed_joined(
    grad: FlexTensor,
    qkv: [FlexTensor; 3],
    log_sum: FlexTensor,
    spec: AttentionSpec,
    texts: &Texts,
) -> FlexTensor {
    let parts = Part::all([&qkv[0], &qkv[1]], spec, texts);
    let all = width(&qkv[0]) + 2 * width(&qkv[1]);
    let mut joined = vec![0.0; length(&qkv[0]) * all];
    let slices = split(&mut joined, parts.iter().map(|p| p.sizes.sq * all));
    let views = slices.into_iter().zip(&parts);
    let views = views.map(|(slice, part)| joined_views(slice, part.sizes));
    let views = views.collect();
    backward_parts(&parts, views, &grad, &qkv, &log_sum);
    row(joined, all)
}

/// Fills the gradients of all texts.
fn backward_parts(
    parts: &[Part],
    views: Vec<[Vec<ViewMut<'_>>; 3]>,
    grad: &FlexTensor,
    qkv: &[FlexTensor; 3],
    log_sum: &FlexTensor,
) {
    let (ones, sums) = (all_seen(parts), flex::slice(log_sum));
    parts.par_iter().zip(views).for_each(|(part, views)| {
        let Part { sizes, queries, .. } = part;
        let heads = sizes.spec.heads;
        let sums = &sums[queries.start * heads..queries.end * heads];
        let kept = [&ones[..sizes.sk], sums];
        let grad = rows::<Flex>(grad, queries);
        backward_into(views, grad, part.of(qkv), kept, *sizes);
    });
}
