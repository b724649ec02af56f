//! State of an adapter that training changes without an optimizer.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// A matrix that no optimizer changes and that an adapter keeps all the same, because training
/// changes it: saved and restored with the trained parameters, not counted among them.
#[derive(Module, Debug)]
pub struct Buffer {
    value: Param<Tensor<2>>,
}

/// What visitors are told of the inside of a [`Buffer`].
pub(crate) const BUFFER: &str = "Struct:Buffer";

impl Buffer {
    /// A buffer of these values.
    pub fn new(value: Tensor<2>) -> Self {
        let value = Param::from_tensor(value).set_require_grad(false);
        Self { value }
    }

    /// The values.
    pub fn val(&self) -> Tensor<2> {
        self.value.val()
    }

    /// The buffer with other values.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let value = self.value.map(|old| change(old).detach());
        Self { value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::Dense;
    use crate::state::{restore, trainable_parameters, trained_tensors};
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct WithBuffer {
        dense: Dense,
        merged: Buffer,
    }

    #[test]
    fn a_buffer_is_saved_and_restored_and_not_trained() {
        let device = Device::flex().autodiff();
        let module = |fill: f64| WithBuffer {
            dense: Dense::new(
                Tensor::ones([2, 3], &device),
                Some(Tensor::zeros([3], &device)),
            ),
            merged: Buffer::new(Tensor::full([2, 2], fill, &device)),
        };
        let tensors = trained_tensors(&module(3.0));
        let names: Vec<_> = tensors.keys().map(String::as_str).collect();
        assert_eq!(names, ["dense.bias", "dense.weight", "merged.value"]);
        assert_eq!(trainable_parameters(&module(3.0)), 2 * 3 + 3);
        let restored = restore(module(0.0), tensors.clone(), "x").unwrap();
        assert_eq!(trained_tensors(&restored), tensors);
        let changed = restored.merged.map(|old| old + 1.0);
        let sum: f32 = changed.val().sum().into_scalar();
        assert_eq!(sum, 16.0);
        assert!(!changed.val().is_require_grad());
    }
}
