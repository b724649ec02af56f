use crate::testing::{self, Case, leaf};
use crate::{linear, linear_onto, plain};
use burn::tensor::Tensor;

fn compare(case: &Case, trainable: [bool; 3], rows: usize, d_in: usize, d_out: usize) {
    let x = case.leaf([2, rows, d_in], trainable[0]);
    let weight = case.leaf([d_in, d_out], trainable[1]);
    let bias = case.leaf([d_out], trainable[2]);
    let fused = linear(x.clone(), weight.clone(), Some(bias.clone()));
    let expected = plain::linear(x.clone(), weight.clone(), Some(bias.clone()));
    let leaves = [leaf(&x), leaf(&weight), leaf(&bias)];
    testing::assert_same(case, fused, expected, &leaves, 1e-5);
}

#[test]
fn values_and_gradients_match_the_plain_form() {
    for case in Case::all() {
        for (rows, d_in, d_out) in [(1, 1, 1), (3, 5, 7), (17, 33, 65), (64, 48, 96)] {
            compare(&case, [true, true, true], rows, d_in, d_out);
            compare(&case, [true, false, false], rows, d_in, d_out);
            compare(&case, [false, true, false], rows, d_in, d_out);
            compare(&case, [false, false, true], rows, d_in, d_out);
        }
    }
}

#[test]
fn a_product_onto_another_tensor_matches_the_sum_and_leaves_what_others_hold() {
    for case in Case::all() {
        for (rows, d_in, d_out) in [(1, 1, 1), (9, 3, 70), (33, 8, 49)] {
            for trained in [
                [true, true, true],
                [true, false, false],
                [false, true, true],
            ] {
                let y = case.leaf([2, rows, d_out], trained[0]);
                let x = case.leaf([2, rows, d_in], trained[1]);
                let weight = case.leaf([d_in, d_out], trained[2]);
                let before = y.to_data();
                let fused = linear_onto(y.clone(), x.clone(), weight.clone());
                let plain = || y.clone() + plain::linear(x.clone(), weight.clone(), None);
                let leaves = [leaf(&y), leaf(&x), leaf(&weight)];
                testing::assert_same(&case, fused, plain(), &leaves, 1e-5);
                assert_eq!(y.to_data(), before);
                // A tensor of nobody else's is changed in place.
                let in_place = linear_onto(y.clone() * 1.0, x.clone(), weight.clone());
                testing::assert_same(&case, in_place, plain(), &leaves, 1e-5);
            }
        }
    }
}

#[test]
fn transposed_weights_and_narrowed_inputs_match_the_plain_form() {
    for case in Case::all() {
        let wide = case.leaf([2, 5, 12], true);
        let weight = case.leaf([9, 4], true);
        let form = |f: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>| {
            f(
                wide.clone().narrow(2, 3, 4),
                weight.clone().transpose(),
                None,
            ) + f(
                wide.clone().narrow(2, 8, 4).swap_dims(0, 1),
                weight.clone().transpose(),
                None,
            )
            .swap_dims(0, 1)
        };
        let leaves = [leaf(&wide), leaf(&weight)];
        testing::assert_same(&case, form(linear), form(plain::linear), &leaves, 1e-5);
    }
}

#[test]
fn a_frozen_weight_and_bias_receive_no_gradient() {
    for case in Case::all() {
        let x = case.leaf([3, 4], true);
        let (weight, bias) = (case.leaf([4, 5], false), case.leaf([5], false));
        let grads = linear(x.clone(), weight.clone(), Some(bias.clone()))
            .sum()
            .backward();
        assert!(x.grad(&grads).is_some());
        assert!(weight.grad(&grads).is_none() && bias.grad(&grads).is_none());
    }
}

#[test]
#[should_panic(expected = "`x` ends in 3, expected `d_in` = 4")]
fn an_input_of_the_wrong_width_is_refused() {
    let case = &Case::all()[0];
    linear(case.leaf([2, 3], false), case.leaf([4, 5], false), None);
}

#[test]
fn a_gradient_that_is_one_repeated_number_is_taken_as_it_is() {
    for case in Case::all() {
        let (x, weight) = (case.leaf([2, 9, 17], true), case.leaf([17, 33], true));
        let grads = |form: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>| {
            let grads = form(x.clone(), weight.clone(), None).sum().backward();
            (x.grad(&grads).unwrap(), weight.grad(&grads).unwrap())
        };
        let ((dx, dw), (expected_dx, expected_dw)) = (grads(linear), grads(plain::linear));
        testing::assert_close([dx, expected_dx], 1e-5, "gradient of the input");
        testing::assert_close([dw, expected_dw], 1e-5, "gradient of the weight");
    }
}
