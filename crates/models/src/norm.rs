//! Normalisation over the last axis.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::kernels;

/// Layer norm with gain and shift.
#[derive(Module, Debug)]
pub(crate) struct Norm {
    /// `[d]`
    pub(crate) gamma: Param<Tensor<1>>,
    /// `[d]`
    pub(crate) beta: Param<Tensor<1>>,
    /// Added to the variance.
    pub(crate) eps: f64,
}

impl Norm {
    /// Normalises `[batch, sequence, d]` over its last axis.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::layer_norm(x, self.gamma.val(), self.beta.val(), self.eps)
    }
}

/// Norm by the root mean square, with gain only.
#[derive(Module, Debug)]
pub(crate) struct RmsNorm {
    /// `[d]`
    pub(crate) gamma: Param<Tensor<1>>,
    /// Added to the mean square.
    pub(crate) eps: f64,
}

impl RmsNorm {
    /// Normalises `[batch, sequence, d]` over its last axis.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::rms_norm(x, self.gamma.val(), self.eps)
    }

    /// Normalises each head of `[batch, sequence, heads * d]`.
    pub(crate) fn forward_heads(&self, x: Tensor<3>) -> Tensor<3> {
        let ([batch, seq, width], [d]) = (x.dims(), self.gamma.lazy_shape().dims());
        let heads = x.reshape([batch, seq * width / d, d]);
        self.forward(heads).reshape([batch, seq, width])
    }
}
