//! The network that makes the weights of all adapters of a model.
//!
//! A context (what is known of the task, or of the text) and trained embeddings of layer and
//! sublayer go through two linear layers with a norm behind them; linear layers then make every
//! weight of the adapter at that place. All places share all of it.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation::relu};
use peft_core::{CoreError, Geometry, Init, Role, check, kernels};

/// Sizes of a hypernetwork.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HyperShape {
    /// Width of the model.
    pub(crate) d: usize,
    /// Width of the bottlenecks it makes.
    pub(crate) m: usize,
    /// Number of transformer layers.
    pub(crate) layers: usize,
    /// Width of every embedding: of the context, of a layer, of a sublayer, and of all together.
    pub(crate) e: usize,
    /// Width of the hidden layer between them.
    pub(crate) hidden: usize,
}

/// The sublayers that get an adapter.
const ROLES: [Role; 2] = [Role::AfterAttention, Role::AfterMlp];

/// Where an adapter sits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    layer: usize,
    sublayer: usize,
}

impl Place {
    /// The place of this role, if adapters sit there.
    pub(crate) fn new(layer: usize, role: Role) -> Option<Self> {
        let sublayer = ROLES.iter().position(|r| *r == role)?;
        Some(Self { layer, sublayer })
    }

    /// A number of its own for every place of a model.
    pub(crate) fn index(self) -> usize {
        self.layer * ROLES.len() + self.sublayer
    }
}

impl HyperShape {
    pub(crate) fn of(geometry: &Geometry, m: usize, e: usize, hidden: usize) -> Self {
        Self {
            d: geometry.width,
            m,
            layers: geometry.layers,
            e,
            hidden,
        }
    }

    /// Refuses sizes of zero, or such that together ask for more memory than any model.
    pub(crate) fn check(self, width_key: &str) -> Result<(), CoreError> {
        check::size("bottleneck", self.m)?;
        check::size(width_key, self.e)?;
        check::size("hidden", self.hidden)?;
        check::size(&format!("{width_key} * bottleneck"), self.e * self.m)?;
        check::size(&format!("{width_key} * hidden"), self.e * self.hidden)
    }

    /// Closed form of the number of parameters, what makes the context aside.
    pub(crate) fn parameters(self) -> usize {
        let Self {
            d,
            m,
            layers,
            e,
            hidden,
        } = self;
        let embeddings = (layers + ROLES.len()) * e;
        let projector = (3 * e + 1) * hidden + (hidden + 1) * e + 2 * e;
        embeddings + projector + (e + 1) * (2 * d * m + d + m)
    }
}

/// A linear layer that makes the values of one weight.
#[derive(Module, Debug)]
pub(crate) struct Generator {
    /// `[e, values]`
    pub(crate) weight: Param<Tensor<2>>,
    /// `[values]`
    pub(crate) base: Param<Tensor<1>>,
}

impl Generator {
    /// A generator whose values start uniform within `bound`, whatever the embedding; all zero for
    /// a bound of 0.
    pub(crate) fn new(e: usize, values: usize, bound: f64, init: &mut Init) -> Self {
        // The embedding is normalised: its e entries add up to the variance of one value.
        let weight = init.uniform([e, values], bound / (e as f64).sqrt());
        Self {
            weight: Param::from_tensor(weight),
            base: Param::from_tensor(init.zeros([values])),
        }
    }

    /// The values for each embedding, `[.., e]` to `[.., values]`.
    pub(crate) fn forward<const D: usize>(&self, embedding: Tensor<D>) -> Tensor<D> {
        kernels::linear(embedding, self.weight.val(), Some(self.base.val()))
    }
}

/// The network, from a context to the values of an adapter's weights.
#[derive(Module, Debug)]
pub(crate) struct HyperNet {
    /// `[layers, e]`
    layers: Param<Tensor<2>>,
    /// `[sublayers, e]`
    sublayers: Param<Tensor<2>>,
    /// `[3 e, hidden]`
    input: Param<Tensor<2>>,
    /// `[hidden]`
    input_bias: Param<Tensor<1>>,
    /// `[hidden, e]`
    output: Param<Tensor<2>>,
    /// `[e]`
    output_bias: Param<Tensor<1>>,
    /// `[e]`
    gamma: Param<Tensor<1>>,
    /// `[e]`
    beta: Param<Tensor<1>>,
    /// Makes `[d, m]`.
    pub(crate) down: Generator,
    /// Makes `[m]`.
    pub(crate) down_bias: Generator,
    /// Makes `[m, d]`.
    pub(crate) up: Generator,
    /// Makes `[d]`.
    pub(crate) up_bias: Generator,
}

impl HyperNet {
    /// A network whose adapters start with weights within these bounds, biases at zero.
    pub(crate) fn new(shape: HyperShape, bounds: (f64, f64), init: &mut Init) -> Self {
        let HyperShape {
            d,
            m,
            layers,
            e,
            hidden,
        } = shape;
        Self {
            layers: Param::from_tensor(init.normal([layers, e], 1.0)),
            sublayers: Param::from_tensor(init.normal([ROLES.len(), e], 1.0)),
            input: Param::from_tensor(init.kaiming_uniform([3 * e, hidden], 3 * e)),
            input_bias: Param::from_tensor(init.zeros([hidden])),
            output: Param::from_tensor(init.kaiming_uniform([hidden, e], hidden)),
            output_bias: Param::from_tensor(init.zeros([e])),
            gamma: Param::from_tensor(init.full([e], 1.0)),
            beta: Param::from_tensor(init.zeros([e])),
            down: Generator::new(e, d * m, bounds.0, init),
            down_bias: Generator::new(e, m, 0.0, init),
            up: Generator::new(e, m * d, bounds.1, init),
            up_bias: Generator::new(e, d, 0.0, init),
        }
    }

    /// What is known of the adapter at a place, `[rows, e]` of contexts to `[rows, e]`.
    pub(crate) fn embed(&self, context: Tensor<2>, place: Place) -> Tensor<2> {
        let [rows, e] = context.dims();
        let row = |table: &Param<Tensor<2>>, at| table.val().narrow(0, at, 1).expand([rows, e]);
        let layer = row(&self.layers, place.layer);
        let sublayer = row(&self.sublayers, place.sublayer);
        let all = Tensor::cat(vec![context, layer, sublayer], 1);
        let h = relu(kernels::linear(
            all,
            self.input.val(),
            Some(self.input_bias.val()),
        ));
        let h = kernels::linear(h, self.output.val(), Some(self.output_bias.val()));
        kernels::layer_norm(h, self.gamma.val(), self.beta.val(), 1e-5)
    }
}
