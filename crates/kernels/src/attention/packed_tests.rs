use super::*;
use crate::plain;
use crate::testing::{self, Case, leaf};

/// Texts of one token, around the size of a block, and beyond it.
const LENGTHS: [&[usize]; 3] = [&[1], &[3, 1, 5], &[64, 7, 70, 2]];

fn specs() -> impl Iterator<Item = AttentionSpec> {
    let of = |(heads, kv_heads): (usize, usize)| {
        [(true, None), (true, Some(2)), (false, None)].map(|(causal, window)| AttentionSpec {
            heads,
            kv_heads,
            scale: 0.5,
            causal,
            window,
        })
    };
    [(2, 2), (4, 2)].into_iter().flat_map(of)
}

/// The plain form of every text alone, one after the other.
fn one_by_one([q, k, v]: [Tensor<3>; 3], spec: &AttentionSpec, texts: &Texts) -> Tensor<3> {
    let alone = |(queries, keys): (Range<usize>, Range<usize>)| {
        let part = |t: &Tensor<3>, at: &Range<usize>| t.clone().narrow(1, at.start, at.len());
        plain::attention(
            part(&q, &queries),
            part(&k, &keys),
            part(&v, &keys),
            spec,
            None,
        )
    };
    Tensor::cat(texts.places().map(alone).collect(), 1)
}

#[test]
fn every_text_gets_what_it_would_get_alone() {
    const DH: usize = 4;
    for case in Case::all() {
        for (lengths, spec) in LENGTHS.iter().flat_map(|l| specs().map(move |s| (l, s))) {
            for before in [0, 3] {
                let texts = Texts::new(lengths).with_keys_before(before);
                let [queries, keys] = texts.totals();
                assert_eq!(keys, queries + before * lengths.len());
                let q = case.leaf([1, queries, spec.heads * DH], true);
                let [k, v] = [0; 2].map(|_| case.leaf([1, keys, spec.kv_heads * DH], true));
                let packed = attention_packed(q.clone(), k.clone(), v.clone(), &spec, &texts);
                let expected = one_by_one([q.clone(), k.clone(), v.clone()], &spec, &texts);
                let leaves = [leaf(&q), leaf(&k), leaf(&v)];
                testing::assert_same(&case, packed, expected, &leaves, 1e-5);
            }
        }
    }
}

#[test]
fn a_fused_projection_gives_what_its_parts_give() {
    const DH: usize = 4;
    for case in Case::all() {
        for (lengths, spec) in LENGTHS.iter().flat_map(|l| specs().map(move |s| (l, s))) {
            let texts = Texts::new(lengths);
            let (d, d_kv) = (spec.heads * DH, spec.kv_heads * DH);
            let [tokens, _] = texts.totals();
            let qkv = case.leaf([1, tokens, d + 2 * d_kv], true);
            let part = |start, len| qkv.clone().narrow(2, start, len);
            let packed = attention_qkv_packed(qkv.clone(), &spec, &texts);
            let parts = [part(0, d), part(d, d_kv), part(d + d_kv, d_kv)];
            let expected = one_by_one(parts, &spec, &texts);
            testing::assert_same(&case, packed, expected, &[leaf(&qkv)], 1e-5);
        }
    }
}

#[test]
#[should_panic(expected = "shape of `k`")]
fn texts_that_do_not_fill_the_row_are_refused() {
    let case = &Case::all()[0];
    let spec = specs().next().unwrap();
    let (q, k) = (case.random([1, 4, 4]), case.random([1, 5, 4]));
    attention_packed(q, k.clone(), k, &spec, &Texts::new(&[3, 1]));
}

#[test]
#[should_panic(expected = "none is empty")]
fn an_empty_text_is_refused() {
    Texts::new(&[3, 0]);
}
