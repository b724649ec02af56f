//! AdamW against Burn's own, on the weight of a feed-forward layer.

use burn::optim::{AdamWConfig, Optimizer};
use burn::tensor::Tensor;
use criterion::Criterion;
use kernels::{AdamWSpec, Moments};

use crate::{WIDTH, compare, random};

const RATE: f64 = 1e-3;
const WEIGHT_DECAY: f64 = 0.01;

/// One step after the other, each on what the last one returned.
pub(crate) fn adamw(criterion: &mut Criterion) {
    let [start, grad] = [(); 2].map(|()| random([WIDTH, 4 * WIDTH]).inner());
    let (fused, plain) = (fused_steps(&start, &grad), burns_steps(&start, &grad));
    compare(criterion, "adamw of d x 4d", fused, plain);
}

fn fused_steps(start: &Tensor<2>, grad: &Tensor<2>) -> impl FnMut() {
    let mut moments = Some(Moments {
        value: own(start),
        first: start.zeros_like(),
        second: start.zeros_like(),
    });
    let mut spec = AdamWSpec {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        weight_decay: WEIGHT_DECAY,
        rate: RATE,
        time: 0,
    };
    move || {
        spec.time += 1;
        let old = moments.take().expect("the last step's moments");
        moments = Some(kernels::adamw(old, grad.clone(), &spec));
    }
}

fn burns_steps(start: &Tensor<2>, grad: &Tensor<2>) -> impl FnMut() {
    let optimizer = AdamWConfig::new()
        .with_weight_decay(WEIGHT_DECAY as f32)
        .with_epsilon(1e-8)
        .build();
    let (mut value, mut moments) = (Some(own(start)), None);
    move || {
        let old = value.take().expect("the last step's value");
        let (new, state) = optimizer.step(RATE, old, grad.clone(), moments.take());
        (value, moments) = (Some(new), state);
    }
}

/// A copy: a tensor that someone else holds is not updated in place.
fn own(tensor: &Tensor<2>) -> Tensor<2> {
    tensor.clone() * 1.0
}
