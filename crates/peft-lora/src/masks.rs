//! Dropout in the tests of methods: what a layer computes against its formula under the same mask.

use burn::nn::DropoutConfig;
use burn::tensor::Tensor;

use crate::family::testing::{device, largest};

/// Random numbers of a device are shared by all tests of a program, so that another may draw some
/// between the two uses of a mask. A wrong formula fits under none.
const TRIES: u64 = 50;

/// Checks that `found` is what the formula makes of the input as the dropout leaves it.
pub(crate) fn computes_under_a_mask(
    prob: f64,
    x: &Tensor<3>,
    found: impl Fn() -> Tensor<3>,
    formula: impl Fn(Tensor<3>) -> Tensor<3>,
) {
    let fits = |seed| {
        device().seed(seed);
        let found = found();
        device().seed(seed);
        let left = DropoutConfig::new(prob).init().forward(x.clone());
        let kept = left.clone() / x.clone();
        let kept: Vec<f32> = kept.into_data().try_to_vec().unwrap();
        let share = 1.0 / (1.0 - prob as f32);
        let some = kept.iter().any(|k| *k == 0.0) && kept.iter().any(|k| (k - share).abs() < 1e-4);
        some && largest(found - formula(left)) < 1e-4
    };
    assert!((0..TRIES).any(fits), "no mask of {TRIES} gives the formula");
}
