//! The bottleneck every adapter of this crate is made of: down, non-linearity, up.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Activation, CoreError, Init, kernels};
use serde::{Deserialize, Serialize};

/// The width of a bottleneck, in either of the two ways the field states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// The width itself.
    Bottleneck(usize),
    /// The model's width over this factor.
    ReductionFactor(usize),
}

/// Picks the one of the two keys that was given.
///
/// # Errors
/// If both were given, or one is zero or leaves no width.
pub(crate) fn width(
    bottleneck: Option<usize>,
    reduction_factor: Option<usize>,
    default: Width,
    d: usize,
) -> Result<usize, CoreError> {
    let width = match (bottleneck, reduction_factor) {
        (Some(_), Some(factor)) => {
            let expected = "left out where `bottleneck` is given";
            return Err(CoreError::bad_value("reduction_factor", factor, expected));
        }
        (Some(m), None) => Width::Bottleneck(m),
        (None, Some(factor)) => Width::ReductionFactor(factor),
        (None, None) => default,
    };
    match width {
        Width::Bottleneck(0) => Err(CoreError::bad_value("bottleneck", 0, "at least 1")),
        Width::Bottleneck(m) => Ok(m),
        Width::ReductionFactor(factor) if factor == 0 || d / factor == 0 => {
            let expected = format!("between 1 and the model's width {d}");
            Err(CoreError::bad_value("reduction_factor", factor, &expected))
        }
        Width::ReductionFactor(factor) => Ok(d / factor),
    }
}

/// How a bottleneck starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterInit {
    /// Normal weights of deviation 0.02, zero biases: BERT's own start, AdapterHub's default.
    Bert,
    /// Kaiming-uniform down, zero up: exactly the identity at the start (He et al. 2022).
    Mam,
}

/// `up(f(down(x)))` with biases: `2 m d + d + m` parameters.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// `[d, m]`
    down: Param<Tensor<2>>,
    /// `[m]`
    down_bias: Param<Tensor<1>>,
    /// `[m, d]`
    up: Param<Tensor<2>>,
    /// `[d]`
    up_bias: Param<Tensor<1>>,
    dropout: Dropout,
    #[module(skip)]
    non_linearity: Activation,
}

impl Bottleneck {
    /// A bottleneck of width `m` in a model of width `d`.
    pub fn new(
        (d, m): (usize, usize),
        non_linearity: Activation,
        dropout: f64,
        start: AdapterInit,
        init: &mut Init,
    ) -> Self {
        let (down, up) = match start {
            AdapterInit::Bert => (init.normal([d, m], 0.02), init.normal([m, d], 0.02)),
            AdapterInit::Mam => (init.kaiming_uniform([d, m], d), init.zeros([m, d])),
        };
        Self {
            down: Param::from_tensor(down),
            down_bias: Param::from_tensor(init.zeros([m])),
            up: Param::from_tensor(up),
            up_bias: Param::from_tensor(init.zeros([d])),
            dropout: DropoutConfig::new(dropout).init(),
            non_linearity,
        }
    }

    /// Closed form of the number of parameters.
    pub fn parameters(d: usize, m: usize) -> usize {
        2 * m * d + d + m
    }

    /// The bottleneck's output, without any residual.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.dropout.forward(x);
        let h = kernels::linear(x, self.down.val(), Some(self.down_bias.val()));
        let h = self.non_linearity.forward(h);
        kernels::linear(h, self.up.val(), Some(self.up_bias.val()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_key_gives_the_width() {
        let default = Width::ReductionFactor(16);
        assert_eq!(width(Some(16), None, default, 768).unwrap(), 16);
        assert_eq!(width(None, Some(48), default, 768).unwrap(), 16);
        assert_eq!(width(None, None, default, 768).unwrap(), 48);
    }

    #[test]
    fn both_keys_together_and_impossible_values_are_refused() {
        let default = Width::ReductionFactor(16);
        assert!(width(Some(16), Some(48), default, 768).is_err());
        let error = width(None, Some(1000), default, 768)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`reduction_factor` is 1000"), "{error}");
    }
}
