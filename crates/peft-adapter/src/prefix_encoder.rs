//! The network that makes the prefixes of all layers while training.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{Attend, AttendSlot, Gate, Heads, Init, Pass, Rule, kernels};

use crate::prefix::{PrefixAttention, attend};

/// Sizes of a prefix network.
#[derive(Clone, Copy, Debug)]
pub struct EncoderShape {
    /// Number of virtual tokens.
    pub tokens: usize,
    /// Width of the model.
    pub d: usize,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Width of the prefixes of all layers together, keys and values.
    pub out: usize,
}

/// Trained tokens and two linear layers with tanh between them, whose output are the keys and the
/// values of every layer side by side.
#[derive(Module, Debug)]
pub struct PrefixEncoder {
    /// `[n, d]`
    tokens: Param<Tensor<2>>,
    /// `[d, hidden]`
    down: Param<Tensor<2>>,
    /// `[hidden]`
    down_bias: Param<Tensor<1>>,
    /// `[hidden, out]`
    up: Param<Tensor<2>>,
    /// `[out]`
    up_bias: Param<Tensor<1>>,
}

impl PrefixEncoder {
    /// A network that starts as PyTorch's layers do.
    pub fn new(shape: EncoderShape, init: &mut Init) -> Self {
        let EncoderShape {
            tokens,
            d,
            hidden,
            out,
        } = shape;
        Self {
            tokens: Param::from_tensor(init.normal([tokens, d], 1.0)),
            down: Param::from_tensor(init.kaiming_uniform([d, hidden], d)),
            down_bias: Param::from_tensor(init.kaiming_uniform([hidden], d)),
            up: Param::from_tensor(init.kaiming_uniform([hidden, out], hidden)),
            up_bias: Param::from_tensor(init.kaiming_uniform([out], hidden)),
        }
    }

    /// Closed form of the number of parameters.
    pub fn parameters(shape: EncoderShape) -> usize {
        let EncoderShape {
            tokens,
            d,
            hidden,
            out,
        } = shape;
        tokens * d + d * hidden + hidden + hidden * out + out
    }

    /// The prefixes of all layers, `[n, out]`.
    fn output(&self) -> Tensor<2> {
        let linear = |x, weight: &Param<Tensor<2>>, bias: &Param<Tensor<1>>| {
            kernels::linear(x, weight.val(), Some(bias.val()))
        };
        let h = linear(self.tokens.val(), &self.down, &self.down_bias);
        linear(h.tanh(), &self.up, &self.up_bias)
    }

    /// The tensors as AdapterHub keeps them below this path.
    pub(crate) fn rules(path: &str) -> Vec<Rule> {
        let transposed = |ours: &str, theirs: &str| {
            Rule::transposed(format!("shared/{ours}"), format!("{path}.{theirs}.weight"))
        };
        let bias = |ours: &str, theirs: &str| {
            Rule::as_is(
                format!("shared/{ours}_bias"),
                format!("{path}.{theirs}.bias"),
            )
        };
        vec![
            Rule::as_is("shared/tokens", format!("{path}.wte.weight")),
            transposed("down", "control_trans.0"),
            bias("down", "control_trans.0"),
            transposed("up", "control_trans.2"),
            bias("up", "control_trans.2"),
        ]
    }
}

/// Attention with a layer's part of what the shared network makes.
#[derive(Module, Debug)]
pub struct ProjectedPrefix {
    layer: usize,
    kv_width: usize,
    gate: Option<Gate>,
}

impl ProjectedPrefix {
    /// The prefix of a layer whose keys have this width.
    pub fn new(layer: usize, kv_width: usize, gate: Option<Gate>) -> Self {
        Self {
            layer,
            kv_width,
            gate,
        }
    }

    /// Keys and values, each `[n, kv_width]`.
    fn prefix(&self, pass: &Pass<'_>) -> (Tensor<2>, Tensor<2>) {
        let width = self.kv_width;
        let encoder: &PrefixEncoder = pass.shared();
        // Once for all layers: the gradient of a slice of the weight would be as large as the whole
        // weight, in every layer.
        let all = pass.once(encoder.tokens.id, || encoder.output());
        let part = |at| all.clone().narrow(1, (2 * self.layer + at) * width, width);
        (part(0), part(1))
    }
}

impl Attend for ProjectedPrefix {
    fn forward(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        attend(heads, self.prefix(pass), self.gate.as_ref(), pass)
    }

    fn settled(&self, pass: &Pass<'_>) -> Option<AttendSlot> {
        let (keys, values) = self.prefix(pass);
        let prefix = PrefixAttention::new(keys.detach(), values.detach(), self.gate.clone());
        Some(AttendSlot::new(prefix))
    }
}
