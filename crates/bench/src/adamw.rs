//! AdamW as an optimizer of `burn-optim`, one pass over memory a step.

use burn::optim::{AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};
use kernels::{AdamWSpec, Moments};

/// AdamW with PyTorch's defaults, but for the weight decay.
#[derive(Clone, Debug)]
pub struct AdamW {
    weight_decay: f64,
}

impl AdamW {
    /// With so much decay, times the learning rate, a step.
    pub fn new(weight_decay: f64) -> Self {
        Self { weight_decay }
    }
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        value: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (time, first, second) = match state {
            Some(state) => (state.time, state.moment_1, state.moment_2),
            None => (0, value.zeros_like(), value.zeros_like()),
        };
        let spec = AdamWSpec {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: self.weight_decay,
            rate,
            time: time + 1,
        };
        let old = Moments {
            value,
            first,
            second,
        };
        let new = kernels::adamw(old, grad, &spec);
        let state = AdaptiveMomentumState::new(spec.time, new.first, new.second);
        (new.value, Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.to_device(device)
    }
}
