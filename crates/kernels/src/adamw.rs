//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in one pass over memory.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, Flex, NdArray, backend_extension,
};
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::{flex, simd};

/// What a step of AdamW depends on besides its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSpec {
    /// Share of the first moment that a step keeps.
    pub beta_1: f64,
    /// Share of the second moment that a step keeps.
    pub beta_2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Share of the value that is taken away, times the learning rate.
    pub weight_decay: f64,
    /// Learning rate.
    pub rate: f64,
    /// Number of the step, from 1 on.
    pub time: usize,
}

impl AdamWSpec {
    fn step(&self) -> simd::Step {
        let time = i32::try_from(self.time).unwrap_or(i32::MAX);
        let correction = |beta: f64| 1.0 / (1.0 - beta.powi(time));
        simd::Step {
            keep_first: self.beta_1 as f32,
            keep_second: self.beta_2 as f32,
            second_scale: correction(self.beta_2) as f32,
            epsilon: self.epsilon as f32,
            keep_value: (1.0 - self.rate * self.weight_decay) as f32,
            rate: (self.rate * correction(self.beta_1)) as f32,
        }
    }
}

/// A parameter and the moments of its gradient, all of one shape.
#[derive(Clone, Debug)]
pub struct Moments<const D: usize> {
    /// The parameter.
    pub value: Tensor<D>,
    /// Running mean of the gradient.
    pub first: Tensor<D>,
    /// Running mean of the gradient's square.
    pub second: Tensor<D>,
}

/// One step: new moments, then `value -= rate * (mean / (sqrt(mean of squares) + epsilon) +
/// weight_decay * value)` with both means corrected for their start at zero.
///
/// Tensors that nobody else holds are updated in place.
///
/// # Panics
/// If the shapes differ, or `time` is 0.
pub fn adamw<const D: usize>(old: Moments<D>, grad: Tensor<D>, spec: &AdamWSpec) -> Moments<D> {
    assert!(spec.time > 0, "steps count from 1");
    let dims = old.value.dims();
    for (name, found) in [
        ("grad", grad.dims()),
        ("first", old.first.dims()),
        ("second", old.second.dims()),
    ] {
        assert_eq!(found, dims, "shape of `{name}`, expected that of the value");
    }
    let (value, first, second) = <Dispatch as AdamWOps>::adamw_step(
        old.value.into_dispatch(),
        old.first.into_dispatch(),
        old.second.into_dispatch(),
        grad.into_dispatch(),
        *spec,
    );
    Moments {
        value: Tensor::from_dispatch(value),
        first: Tensor::from_dispatch(first),
        second: Tensor::from_dispatch(second),
    }
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait AdamWOps: Backend {
    /// The new value and moments.
    fn adamw_step(
        value: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        spec: AdamWSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::<Self>(value, first, second, grad, spec)
    }
}

fn composed<B: Backend>(
    value: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    grad: FloatTensor<B>,
    spec: AdamWSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let step = spec.step();
    let mix = |old, new, keep: f64| {
        let new = B::float_mul_scalar(new, (1.0 - keep).into());
        B::float_add(B::float_mul_scalar(old, keep.into()), new)
    };
    let first = mix(first, grad.clone(), spec.beta_1);
    let second = mix(second, B::float_mul(grad.clone(), grad), spec.beta_2);
    let size = B::float_sqrt(B::float_mul_scalar(
        second.clone(),
        step.second_scale.into(),
    ));
    let size = B::float_add_scalar(size, spec.epsilon.into());
    let change = B::float_mul_scalar(B::float_div(first.clone(), size), step.rate.into());
    let kept = B::float_mul_scalar(value, (1.0 - spec.rate * spec.weight_decay).into());
    (B::float_sub(kept, change), first, second)
}

impl AdamWOps for NdArray {}

#[cfg(feature = "cuda")]
impl AdamWOps for burn::backend::Cube {}

/// Elements that a thread takes at a time.
const PART: usize = 1 << 14;

impl AdamWOps for Flex {
    fn adamw_step(
        value: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        grad: FlexTensor,
        spec: AdamWSpec,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !flex::all_f32(&[&value, &first, &second, &grad]) {
            return composed::<Self>(value, first, second, grad, spec);
        }
        let step = spec.step();
        let [mut value, mut first, mut second] = [value, first, second].map(flex::owned);
        let grad = flex::contiguous(grad);
        flex::slice_mut(&mut value)
            .par_chunks_mut(PART)
            .zip(flex::slice_mut(&mut first).par_chunks_mut(PART))
            .zip(flex::slice_mut(&mut second).par_chunks_mut(PART))
            .zip(flex::slice(&grad).par_chunks(PART))
            .for_each(|(((value, first), second), grad)| {
                simd::adamw(value, first, second, grad, &step);
            });
        (value, first, second)
    }
}

/// An optimizer works on values, not on graphs; a tracked tensor comes back untracked.
impl<B: AdamWOps, C: CheckpointStrategy> AdamWOps for Autodiff<B, C> {
    fn adamw_step(
        value: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        spec: AdamWSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [value, first, second, grad] =
            [value, first, second, grad].map(|tensor| tensor.into_primitive());
        let (value, first, second) = B::adamw_step(value, first, second, grad, spec);
        (
            Self::from_inner(value),
            Self::from_inner(first),
            Self::from_inner(second),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Case, assert_close};
    use burn::optim::{AdamWConfig, Optimizer};

    #[test]
    fn ten_steps_match_burns_adamw() {
        for case in Case::all() {
            let start = case.random([7, 33]);
            let reference = AdamWConfig::new()
                .with_weight_decay(0.1)
                .with_epsilon(1e-8)
                .build();
            let (mut expected, mut state) = (start.clone().inner(), None);
            let zeros = expected.zeros_like();
            let mut found = Moments {
                value: expected.clone(),
                first: zeros.clone(),
                second: zeros,
            };
            for time in 1..=10 {
                let grad = (case.random([33, 7]) * 0.1).inner().transpose();
                let rate = 0.01 / time as f64;
                (expected, state) = reference.step(rate, expected, grad.clone(), state);
                let spec = AdamWSpec {
                    beta_1: 0.9,
                    beta_2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: 0.1,
                    rate,
                    time,
                };
                found = adamw(found, grad, &spec);
            }
            assert_close([found.value, expected], 1e-6, "value");
        }
    }

    #[test]
    fn a_tensor_that_someone_else_holds_is_left_as_it_is() {
        let case = &Case::all()[0];
        let value = case.random([4, 4]).inner();
        let before = value.to_data();
        let old = Moments {
            value: value.clone(),
            first: value.zeros_like(),
            second: value.zeros_like(),
        };
        let spec = AdamWSpec {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            rate: 0.1,
            time: 1,
        };
        let new = adamw(old, value.ones_like(), &spec);
        assert_eq!(value.to_data(), before);
        assert_close([new.value, value - 0.1], 1e-5, "one step of ones");
    }
}
