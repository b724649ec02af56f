//! What the tests of all operations share.

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use core::cell::Cell;

/// A backend and a float type to test on, with a source of reproducible random numbers.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) device: Device,
    dtype: DType,
    state: Cell<u64>,
}

impl Case {
    /// Fused loops (flex, f32), composed operations on the same backend (f64) and on another.
    pub(crate) fn all() -> Vec<Self> {
        let (flex, ndarray) = (Device::flex().autodiff(), Device::ndarray().autodiff());
        [
            (flex.clone(), DType::F32),
            (flex, DType::F64),
            (ndarray, DType::F32),
        ]
        .map(|(device, dtype)| Self {
            device,
            dtype,
            state: Cell::new(1),
        })
        .into()
    }

    /// A number in 0..1, from a SplitMix64 sequence.
    pub(crate) fn uniform(&self) -> f64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A random tensor, close to standard normal: a sum of uniform numbers.
    pub(crate) fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        self.tensor(shape, || (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0)
    }

    /// A random tensor of zeros and ones.
    pub(crate) fn random_mask<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        self.tensor(shape, || if self.uniform() < 0.65 { 1.0 } else { 0.0 })
    }

    /// A random parameter, or a frozen one.
    pub(crate) fn leaf<const D: usize>(&self, shape: [usize; D], trainable: bool) -> Tensor<D> {
        self.random(shape).set_require_grad(trainable)
    }

    fn tensor<const D: usize>(&self, shape: [usize; D], next: impl Fn() -> f64) -> Tensor<D> {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| next()).collect();
        Tensor::from_data(TensorData::new(values, shape), (&self.device, self.dtype))
    }
}

/// A parameter whose gradient is to be compared, whatever its rank.
pub(crate) type Leaf = Box<dyn Fn(&Gradients) -> Option<Tensor<1>>>;

/// The gradient that a parameter receives, flattened.
pub(crate) fn leaf<const D: usize>(parameter: &Tensor<D>) -> Leaf {
    let parameter = parameter.clone();
    let flat = |grad: Tensor<D>| {
        let elements = grad.shape().num_elements();
        grad.reshape([elements])
    };
    Box::new(move |grads| parameter.grad(grads).map(flat))
}

/// Compares two results and the gradients they give, for a random gradient of the result.
pub(crate) fn assert_same<const D: usize>(
    case: &Case,
    fused: Tensor<D>,
    plain: Tensor<D>,
    leaves: &[Leaf],
    tolerance: f64,
) {
    assert_eq!(fused.dims(), plain.dims());
    assert_eq!(fused.dtype(), plain.dtype());
    let values = [fused.clone().detach(), plain.clone().detach()];
    assert_close(values, tolerance, "value");
    let weights = case.random(plain.dims());
    let fused = (fused * weights.clone()).sum().backward();
    let plain = (plain * weights).sum().backward();
    for (i, leaf) in leaves.iter().enumerate() {
        match (leaf(&fused), leaf(&plain)) {
            (Some(fused), Some(plain)) => {
                assert_close([fused, plain], tolerance, &format!("gradient {i}"));
            }
            (None, None) => {}
            (Some(_), None) => panic!("gradient {i} was not asked for"),
            (None, Some(_)) => panic!("gradient {i} is missing"),
        }
    }
}

/// Compares relative to the largest expected value.
pub(crate) fn assert_close<const D: usize>(
    [actual, expected]: [Tensor<D>; 2],
    tolerance: f64,
    what: &str,
) {
    let scale: f64 = expected.clone().abs().max().into_scalar();
    let error: f64 = (actual - expected).abs().max().into_scalar();
    let limit = tolerance * scale.max(1e-3);
    assert!(error <= limit, "{what}: error {error:e} over {limit:e}");
}
