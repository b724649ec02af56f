use super::*;
use crate::plain;
use crate::testing::{self, Case, leaf};

struct Shape {
    batch: usize,
    sq: usize,
    sk: usize,
    heads: usize,
    kv_heads: usize,
    dh: usize,
}

const SHAPES: [Shape; 5] = [
    Shape {
        batch: 1,
        sq: 1,
        sk: 1,
        heads: 1,
        kv_heads: 1,
        dh: 1,
    },
    Shape {
        batch: 2,
        sq: 5,
        sk: 5,
        heads: 3,
        kv_heads: 3,
        dh: 7,
    },
    Shape {
        batch: 2,
        sq: 3,
        sk: 9,
        heads: 4,
        kv_heads: 2,
        dh: 5,
    },
    Shape {
        batch: 1,
        sq: 9,
        sk: 4,
        heads: 6,
        kv_heads: 1,
        dh: 8,
    },
    Shape {
        batch: 2,
        sq: 131,
        sk: 133,
        heads: 2,
        kv_heads: 1,
        dh: 16,
    },
];

fn spec(shape: &Shape, causal: bool) -> AttentionSpec {
    AttentionSpec {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        scale: 1.0 / (shape.dh as f64).sqrt(),
        causal,
        window: None,
    }
}

/// Without a window, and with windows that hide some keys, all but one, or none.
fn windows(sk: usize) -> [Option<usize>; 4] {
    [None, Some(1), Some(sk.div_ceil(2)), Some(sk + 3)]
}

/// About a third of the keys hidden, and all keys of the first row of the batch.
fn random_mask(case: &Case, batch: usize, sk: usize) -> Tensor<2> {
    let mask = case.random_mask([batch, sk]);
    mask.slice_fill([0..1, 0..sk], 0.0)
}

#[test]
fn values_and_gradients_match_the_plain_form() {
    for case in Case::all() {
        for shape in &SHAPES {
            let choices = [(false, false), (true, false), (false, true), (true, true)];
            let choices = choices
                .into_iter()
                .flat_map(|choice| windows(shape.sk).map(|window| (choice.0, choice.1, window)));
            for (causal, masked, window) in choices {
                let kv = [shape.batch, shape.sk, shape.kv_heads * shape.dh];
                let q = case.leaf([shape.batch, shape.sq, shape.heads * shape.dh], true);
                let (k, v) = (case.leaf(kv, true), case.leaf(kv, true));
                let mask = masked.then(|| random_mask(&case, shape.batch, shape.sk));
                let spec = AttentionSpec {
                    window,
                    ..spec(shape, causal)
                };
                let fused = attention(q.clone(), k.clone(), v.clone(), &spec, mask.clone());
                let expected = plain::attention(q.clone(), k.clone(), v.clone(), &spec, mask);
                let leaves = [leaf(&q), leaf(&k), leaf(&v)];
                testing::assert_same(&case, fused, expected, &leaves, 1e-5);
            }
        }
    }
}

#[test]
fn narrowed_views_of_one_fused_projection_match_the_plain_form() {
    for case in Case::all() {
        let shape = Shape {
            batch: 2,
            sq: 6,
            sk: 6,
            heads: 2,
            kv_heads: 2,
            dh: 3,
        };
        let qkv = case.leaf([shape.batch, shape.sq, 18], true);
        let part = |i: usize| qkv.clone().narrow(2, 6 * i, 6);
        let spec = spec(&shape, true);
        let fused = attention(part(0), part(1), part(2), &spec, None);
        let expected = plain::attention(part(0), part(1), part(2), &spec, None);
        testing::assert_same(&case, fused, expected, &[leaf(&qkv)], 1e-5);
    }
}

#[test]
fn attention_on_a_fused_projection_matches_the_plain_form_on_its_parts() {
    for case in Case::all() {
        for shape in SHAPES
            .iter()
            .filter(|shape| shape.sq == shape.sk || shape.sq > 100)
        {
            let (seq, dh) = (shape.sq, shape.dh);
            let (d, d_kv) = (shape.heads * dh, shape.kv_heads * dh);
            for (causal, window) in [(false, None), (true, None), (true, Some(3))] {
                let qkv = case.leaf([shape.batch, seq, d + 2 * d_kv], true);
                let part = |start: usize, len: usize| qkv.clone().narrow(2, start, len);
                let mask = Some(random_mask(&case, shape.batch, seq));
                let spec = AttentionSpec {
                    window,
                    ..spec(shape, causal)
                };
                let fused = attention_qkv(qkv.clone(), &spec, mask.clone());
                let (k, v) = (part(d, d_kv), part(d + d_kv, d_kv));
                let expected = plain::attention(part(0, d), k, v, &spec, mask);
                testing::assert_same(&case, fused, expected, &[leaf(&qkv)], 1e-5);
            }
        }
    }
}

#[test]
fn large_scores_overflow_nowhere() {
    for case in Case::all() {
        let [q, k, v] = [0; 3].map(|_| case.leaf([2, 4, 6], true));
        let spec = AttentionSpec {
            heads: 2,
            kv_heads: 2,
            scale: 1e4,
            causal: false,
            window: None,
        };
        let fused = attention(q.clone(), k.clone(), v.clone(), &spec, None);
        let expected = plain::attention(q.clone(), k.clone(), v.clone(), &spec, None);
        let values = [fused.clone().detach(), expected.detach()];
        testing::assert_close(values, 1e-5, "value");
        let grads = fused.sum().backward();
        for t in [q, k, v] {
            let sum: f64 = t.grad(&grads).unwrap().abs().sum().into_scalar();
            assert!(sum.is_finite());
        }
    }
}

#[test]
fn queries_that_see_no_key_give_zeros_and_no_gradient() {
    for case in Case::all() {
        let [q, k, v] = [0; 3].map(|_| case.leaf([2, 3, 4], true));
        let spec = AttentionSpec {
            heads: 2,
            kv_heads: 2,
            scale: 0.5,
            causal: true,
            window: None,
        };
        let mask = Tensor::zeros([2, 3], &q.device());
        let y = attention(q.clone(), k.clone(), v.clone(), &spec, Some(mask));
        let grads = (y.clone() * 2).sum().backward();
        for t in [
            y,
            q.grad(&grads).unwrap(),
            k.grad(&grads).unwrap(),
            v.grad(&grads).unwrap(),
        ] {
            assert_eq!(t.abs().max().into_scalar::<f64>(), 0.0);
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let case = &Case::all()[1];
    let spec = AttentionSpec {
        heads: 2,
        kv_heads: 1,
        scale: 0.7,
        causal: true,
        window: None,
    };
    let (q, k, v) = (
        case.leaf([1, 3, 4], true),
        case.leaf([1, 3, 2], true),
        case.leaf([1, 3, 2], true),
    );
    let weights = case.random([1, 3, 4]);
    let loss = |q: Tensor<3>, k: Tensor<3>, v: Tensor<3>| {
        (attention(q, k, v, &spec, None) * weights.clone()).sum()
    };
    let grads = loss(q.clone(), k.clone(), v.clone()).backward();
    let step = case.random([1, 3, 2]);
    let along = (k.grad(&grads).unwrap() * step.clone().inner())
        .sum()
        .into_scalar::<f64>();
    let at = |h: f64| loss(q.clone(), k.clone() + step.clone() * h, v.clone()).into_scalar::<f64>();
    let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
    assert!(
        (along - difference).abs() < 1e-8,
        "{along} is not {difference}"
    );
}

#[test]
fn only_what_is_trainable_receives_a_gradient() {
    for case in Case::all() {
        let (q, k) = (case.leaf([1, 3, 4], true), case.leaf([1, 3, 4], false));
        let spec = AttentionSpec {
            heads: 1,
            kv_heads: 1,
            scale: 0.5,
            causal: false,
            window: None,
        };
        let grads = attention(q.clone(), k.clone(), k.clone(), &spec, None)
            .sum()
            .backward();
        assert!(q.grad(&grads).is_some() && k.grad(&grads).is_none());
    }
}

#[test]
#[should_panic(expected = "`kv_heads` = 2 must divide `heads` = 3")]
fn heads_that_do_not_group_are_refused() {
    let case = &Case::all()[0];
    let spec = AttentionSpec {
        heads: 3,
        kv_heads: 2,
        scale: 1.0,
        causal: false,
        window: None,
    };
    let x = case.random([1, 2, 6]);
    attention(x.clone(), x.clone(), x, &spec, None);
}

#[test]
fn a_window_of_one_gives_every_query_its_own_value() {
    for case in Case::all() {
        let [q, k, v] = [0; 3].map(|_| case.random([2, 5, 4]));
        let spec = AttentionSpec {
            heads: 2,
            kv_heads: 2,
            scale: 0.5,
            causal: true,
            window: Some(1),
        };
        let y = attention(q, k, v.clone(), &spec, None);
        testing::assert_close([y, v], 1e-6, "value");
    }
}
