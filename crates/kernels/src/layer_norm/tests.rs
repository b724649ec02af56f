use crate::testing::{self, Case, leaf};
use crate::{layer_norm, plain};

#[test]
fn values_and_gradients_match_the_plain_form() {
    for case in Case::all() {
        for shape in [[1, 1, 6], [2, 3, 5], [3, 7, 33], [2, 9, 384]] {
            for affine in [true, false] {
                let x = case.leaf(shape, true);
                let (gamma, beta) = (case.leaf([shape[2]], affine), case.leaf([shape[2]], affine));
                let shifted = || x.clone() * 2 + 3;
                let fused = layer_norm(shifted(), gamma.clone(), beta.clone(), 1e-5);
                let expected = plain::layer_norm(shifted(), gamma.clone(), beta.clone(), 1e-5);
                let leaves = [leaf(&x), leaf(&gamma), leaf(&beta)];
                testing::assert_same(&case, fused, expected, &leaves, 1e-5);
            }
        }
    }
}

#[test]
fn views_match_the_plain_form() {
    for case in Case::all() {
        let x = case.leaf([4, 6, 5], true);
        let (gamma, beta) = (case.leaf([4], true), case.leaf([4], true));
        let view = || x.clone().narrow(1, 1, 4).swap_dims(0, 2).swap_dims(1, 2);
        let fused = layer_norm(view(), gamma.clone(), beta.clone(), 1e-12);
        let expected = plain::layer_norm(view(), gamma.clone(), beta.clone(), 1e-12);
        testing::assert_same(
            &case,
            fused,
            expected,
            &[leaf(&x), leaf(&gamma), leaf(&beta)],
            2e-5,
        );
    }
}

#[test]
fn only_the_trainable_one_of_gamma_and_beta_receives_a_gradient() {
    for case in Case::all() {
        let x = case.leaf([3, 4], false);
        let (gamma, beta) = (case.leaf([4], false), case.leaf([4], true));
        let y = layer_norm(x.clone(), gamma.clone(), beta.clone(), 1e-5);
        let grads = y.sum().backward();
        assert!(x.grad(&grads).is_none() && gamma.grad(&grads).is_none());
        let dbeta = beta.grad(&grads).unwrap();
        assert_eq!(dbeta.sum().into_scalar::<f64>(), 12.0);
    }
}

#[test]
#[should_panic(expected = "`beta` has 5 elements, expected 4")]
fn a_beta_of_the_wrong_length_is_refused() {
    let case = &Case::all()[0];
    layer_norm(
        case.random([2, 4]),
        case.random([4]),
        case.random([5]),
        1e-5,
    );
}
