use super::*;
use crate::plain;
use crate::testing::{self, Case, leaf};

fn targets(case: &Case, n: usize, vocab: usize) -> Tensor<1, Int> {
    let classes: Vec<i64> = (0..n)
        .map(|_| (case.uniform() * vocab as f64) as i64)
        .collect();
    Tensor::from_data(classes.as_slice(), &case.device)
}

#[test]
fn values_and_gradients_match_the_plain_form() {
    for case in Case::all() {
        for (n, d, vocab) in [(1, 1, 2), (3, 5, 7), (19, 16, 101), (40, 33, 1000)] {
            for (train_hidden, train_weight) in [(true, true), (true, false), (false, true)] {
                let hidden = case.leaf([n, d], train_hidden);
                let weight = case.leaf([d, vocab], train_weight);
                let targets = targets(&case, n, vocab);
                let fused = cross_entropy_head(hidden.clone(), weight.clone(), targets.clone());
                let expected = plain::cross_entropy_head(hidden.clone(), weight.clone(), targets);
                let leaves = [leaf(&hidden), leaf(&weight)];
                testing::assert_same(&case, fused, expected, &leaves, 1e-5);
            }
        }
    }
}

#[test]
fn a_tied_embedding_and_narrowed_rows_match_the_plain_form() {
    for case in Case::all() {
        let states = case.leaf([6, 12], true);
        let embedding = case.leaf([50, 5], true);
        let rows = || states.clone().narrow(0, 1, 4).narrow(1, 3, 5);
        let targets = targets(&case, 4, 50);
        let fused = cross_entropy_head(rows(), embedding.clone().transpose(), targets.clone());
        let expected = plain::cross_entropy_head(rows(), embedding.clone().transpose(), targets);
        testing::assert_same(
            &case,
            fused,
            expected,
            &[leaf(&states), leaf(&embedding)],
            1e-5,
        );
    }
}

#[test]
fn a_backward_pass_from_the_loss_itself_matches_the_plain_form() {
    for case in Case::all() {
        let (hidden, embedding) = (case.leaf([6, 5], true), case.leaf([50, 5], true));
        let targets = targets(&case, 6, 50);
        let grads = |form: fn(Tensor<2>, Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
            let loss = form(
                hidden.clone(),
                embedding.clone().transpose(),
                targets.clone(),
            );
            let grads = loss.backward();
            (
                hidden.grad(&grads).unwrap(),
                embedding.grad(&grads).unwrap(),
            )
        };
        let (fused, expected) = (grads(cross_entropy_head), grads(plain::cross_entropy_head));
        testing::assert_close([fused.0, expected.0], 1e-5, "gradient of the states");
        testing::assert_close([fused.1, expected.1], 1e-5, "gradient of the embedding");
    }
}

#[test]
fn rows_split_into_several_parts_match_the_plain_form() {
    // More logits than are held at once: 300 rows of 40,000.
    let case = &Case::all()[0];
    let (hidden, weight) = (case.leaf([300, 3], true), case.leaf([3, 40_000], true));
    let targets = targets(case, 300, 40_000);
    let fused = cross_entropy_head(hidden.clone(), weight.clone(), targets.clone());
    let expected = plain::cross_entropy_head(hidden.clone(), weight.clone(), targets);
    testing::assert_same(case, fused, expected, &[leaf(&hidden), leaf(&weight)], 2e-5);
}

#[test]
fn gradients_match_finite_differences() {
    let case = &Case::all()[1];
    let (hidden, weight) = (case.leaf([4, 3], true), case.leaf([3, 9], true));
    let targets = targets(case, 4, 9);
    let loss = |hidden, weight| cross_entropy_head(hidden, weight, targets.clone());
    let grads = loss(hidden.clone(), weight.clone()).backward();
    let (dh, dw) = (case.random([4, 3]), case.random([3, 9]));
    let along = (hidden.grad(&grads).unwrap() * dh.clone().inner()).sum()
        + (weight.grad(&grads).unwrap() * dw.clone().inner()).sum();
    let at = |h: f64| {
        let loss = loss(
            hidden.clone() + dh.clone() * h,
            weight.clone() + dw.clone() * h,
        );
        loss.into_scalar::<f64>()
    };
    let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
    let along = along.into_scalar::<f64>();
    assert!(
        (along - difference).abs() < 1e-8,
        "{along} is not {difference}"
    );
}

#[test]
#[should_panic(expected = "target `9` is out of range, expected 0..9")]
fn a_target_outside_the_vocabulary_is_refused() {
    let case = &Case::all()[0];
    let targets = Tensor::from_data([3, 9], &case.device);
    cross_entropy_head(case.random([2, 4]), case.random([4, 9]), targets);
}
