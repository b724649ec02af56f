//! Non-linearities by the names configurations use.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

/// An element-wise non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `max(x, 0)`
    #[serde(rename = "relu")]
    Relu,
    /// GELU with the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// GELU in its tanh approximation.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    /// `x * sigmoid(x)`, also called SiLU.
    #[serde(rename = "swish", alias = "silu")]
    Swish,
    /// Hyperbolic tangent.
    #[serde(rename = "tanh")]
    Tanh,
}

impl Activation {
    /// Applies it to every element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Activation::Relu => activation::relu(x),
            Activation::Gelu => kernels::gelu(x),
            Activation::GeluTanh => kernels::gelu_tanh(x),
            Activation::Swish => activation::silu(x),
            Activation::Tanh => x.tanh(),
        }
    }
}
