//! Adapters made for each text: the hypernetwork reads the text itself, not the name of a task.
//!
//! Paper: Ivison and Peters 2022, "Hyperdecoders: Instance-specific decoders for multi-task NLP",
//! arXiv 2203.08304.
//! Seam: sublayers; shared state. `y' = y + up(f(down(y)))` after the attention and after the
//! feed-forward sublayer, with weights made from the mean of the states `x` that enter the sublayer.
//! A language model must not look ahead, so there every token has the mean of those up to itself.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role,
    SharedSlot, Start, Sublayer, Tap, TapSlot, check, kernels,
};
use serde::{Deserialize, Serialize};

use crate::hypernet::{Generator, HyperNet, HyperShape, Place};

/// Configuration of adapters made for each text, `kind = "hyper_instance"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HyperInstance {
    /// Width of the bottlenecks.
    pub bottleneck: usize,
    /// Width of the embedding of a text, and of those of layers and sublayers.
    pub embedding_dim: usize,
    /// Width of the hidden layer behind them.
    pub hidden: usize,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's output while training.
    pub dropout: f64,
}

impl Default for HyperInstance {
    fn default() -> Self {
        Self {
            bottleneck: 16,
            embedding_dim: 8,
            hidden: 32,
            non_linearity: Activation::GeluTanh,
            dropout: 0.0,
        }
    }
}

impl HyperInstance {
    fn shape(&self, geometry: &Geometry) -> HyperShape {
        HyperShape::of(geometry, self.bottleneck, self.embedding_dim, self.hidden)
    }
}

impl MethodConfig for HyperInstance {
    const INFO: MethodInfo = MethodInfo {
        kind: "hyper_instance",
        name: "Hyperdecoder",
        paper: "Ivison and Peters 2022, arXiv 2203.08304",
        seam: "sublayers: attention, feed-forward; shared state",
        formula: "(d + L + 3) e + (4 e + 1) h + 3 e + (e + 1) (2 m d + d + m), once",
        start: Start::Identity,
        mergeable: false,
        size_key: Some("bottleneck"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Self {
                bottleneck: 3,
                embedding_dim: 2,
                hidden: 5,
                ..Self::default()
            },
            Self {
                bottleneck: 1,
                embedding_dim: 4,
                non_linearity: Activation::Tanh,
                ..Self::default()
            },
        ]
    }
}

impl Method for HyperInstance {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        self.shape(geometry).check("embedding_dim")?;
        check::dropout(self.dropout)
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let shape = self.shape(geometry);
        let HyperShape { d, e, .. } = shape;
        let bounds = (1.0 / (d as f64).sqrt(), 0.0);
        Some(SharedSlot::new(TextHyperNet {
            pool: Param::from_tensor(init.kaiming_uniform([d, e], d)),
            pool_bias: Param::from_tensor(init.zeros([e])),
            net: HyperNet::new(shape, bounds, init),
        }))
    }

    fn tap(&self, layer: usize, role: Role, _d: usize, _init: &mut Init) -> Option<TapSlot> {
        Some(TapSlot::new(InstanceAdapter {
            dropout: DropoutConfig::new(self.dropout).init(),
            place: Place::new(layer, role)?,
            non_linearity: self.non_linearity,
        }))
    }

    /// A text's adapter is made of the mean of its row.
    fn needs_own_rows(&self) -> bool {
        true
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let shape = self.shape(geometry);
        (shape.d + 1) * shape.e + shape.parameters()
    }

    fn size(&self) -> Option<u64> {
        Some(self.bottleneck as u64)
    }
}

/// The hypernetwork with the layer that reads the texts.
#[derive(Module, Debug)]
struct TextHyperNet {
    /// `[d, e]`
    pool: Param<Tensor<2>>,
    /// `[e]`
    pool_bias: Param<Tensor<1>>,
    net: HyperNet,
}

impl TextHyperNet {
    /// What is known of the adapter at a place for every token, or for all tokens of a row alike:
    /// `[batch, sequence or 1, e]`.
    fn embedding(&self, x: Tensor<3>, place: Place, pass: &Pass<'_>) -> Tensor<3> {
        let mean = pass.text_mean(x, self.pool.id, place.index());
        let [batch, tokens, d] = mean.dims();
        let rows = mean.reshape([batch * tokens, d]);
        let context = kernels::linear(rows, self.pool.val(), Some(self.pool_bias.val()));
        let embedding = self.net.embed(context, place);
        let [_, e] = embedding.dims();
        embedding.reshape([batch, tokens, e])
    }
}

/// An adapter behind a sublayer whose weights the shared network makes for each text.
#[derive(Module, Debug)]
struct InstanceAdapter {
    dropout: Dropout,
    #[module(skip)]
    place: Place,
    #[module(skip)]
    non_linearity: Activation,
}

/// `x W` with `W` of `[d, m]` made from each token's embedding: a weight is linear in it, so that
/// `x` meets each row of the generator once and no weight is ever built for a token.
fn down(x: Tensor<3>, embedding: Tensor<3>, generator: &Generator) -> Tensor<3> {
    let [batch, seq, d] = x.dims();
    let [e, values] = generator.weight.dims();
    let m = values / d;
    let parts = generator.weight.val().reshape([e, d, m]);
    let parts = parts.swap_dims(0, 1).reshape([d, e * m]);
    let all = kernels::linear(x.clone(), parts, None).reshape([batch, seq, e, m]);
    let mixed = (all * embedding.unsqueeze_dim::<4>(3)).sum_dim(2);
    let base = generator.base.val().reshape([d, m]);
    mixed.reshape([batch, seq, m]) + kernels::linear(x, base, None)
}

/// Likewise with `W` of `[m, d]`: here the narrow side is multiplied out.
fn up(h: Tensor<3>, embedding: Tensor<3>, generator: &Generator) -> Tensor<3> {
    let [batch, seq, m] = h.dims();
    let [e, values] = generator.weight.dims();
    let d = values / m;
    let all = embedding.unsqueeze_dim::<4>(3) * h.clone().unsqueeze_dim::<4>(2);
    let parts = generator.weight.val().reshape([e * m, d]);
    let base = generator.base.val().reshape([m, d]);
    kernels::linear(all.reshape([batch, seq, e * m]), parts, None) + kernels::linear(h, base, None)
}

impl Tap for InstanceAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        let shared: &TextHyperNet = pass.shared();
        let embedding = shared.embedding(sublayer.residual, self.place, pass);
        let net = &shared.net;
        let h = down(y.clone(), embedding.clone(), &net.down);
        let h = h + net.down_bias.forward(embedding.clone());
        let h = self.non_linearity.forward(h);
        let u = up(h, embedding.clone(), &net.up) + net.up_bias.forward(embedding);
        self.dropout.forward(u) + y
    }
}

#[cfg(test)]
mod tests;
