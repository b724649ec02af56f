//! HyperFormer++: one hypernetwork makes the adapters of all tasks and layers.
//!
//! Paper: Karimi Mahabadi et al. 2021, "Parameter-efficient Multi-task Fine-tuning for Transformers
//! via Shared Hypernetworks", arXiv 2106.04489.
//! Seam: sublayers; shared state. `y' = y + norm(up(f(down(y))))` after the attention and after the
//! feed-forward sublayer, with weights made from the embedding of the row's task. What the tasks have
//! in common is in the network; between their embeddings one may interpolate.

mod weights;

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Int, Tensor};
use peft_core::{
    Activation, CoreError, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Role,
    SharedSlot, Start, Sublayer, Tap, TapSlot, check,
};
use serde::{Deserialize, Serialize};

use self::weights::{MadeAdapter, Weights};
use crate::hypernet::{Generator, HyperNet, HyperShape, Place};

/// Configuration of HyperFormer++, `kind = "hyper"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyper {
    /// Width of the bottlenecks.
    pub bottleneck: usize,
    /// Number of tasks. A row of a batch is of the task its batch says, of task 0 if that says none.
    pub tasks: usize,
    /// Width of the embeddings of tasks, layers and sublayers.
    pub task_dim: usize,
    /// Width of the hidden layer behind them.
    pub hidden: usize,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's output while training.
    pub dropout: f64,
    /// Whether the output is normalised, with weights that the network makes too.
    pub layer_norm: bool,
    /// Weights of the tasks whose mixed embedding takes the place of every row's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolate: Option<Vec<f64>>,
}

impl Default for Hyper {
    fn default() -> Self {
        Self {
            bottleneck: 16,
            tasks: 1,
            task_dim: 64,
            hidden: 128,
            non_linearity: Activation::GeluTanh,
            dropout: 0.0,
            layer_norm: true,
            interpolate: None,
        }
    }
}

impl Hyper {
    fn shape(&self, geometry: &Geometry) -> HyperShape {
        HyperShape::of(geometry, self.bottleneck, self.task_dim, self.hidden)
    }

    fn check_interpolation(&self) -> Result<(), CoreError> {
        let Some(weights) = &self.interpolate else {
            return Ok(());
        };
        let bad = |found: String, expected: &str| {
            Err(CoreError::bad_value("interpolate", found, expected))
        };
        if weights.len() != self.tasks {
            let expected = format!("one for each of {} tasks", self.tasks);
            return bad(format!("{} weights", weights.len()), &expected);
        }
        match weights.iter().find(|weight| !weight.is_finite()) {
            Some(weight) => bad(weight.to_string(), "finite numbers"),
            None => Ok(()),
        }
    }
}

impl MethodConfig for Hyper {
    const INFO: MethodInfo = MethodInfo {
        kind: "hyper",
        name: "HyperFormer",
        paper: "Karimi Mahabadi et al. 2021, arXiv 2106.04489",
        seam: "sublayers: attention, feed-forward; shared state",
        formula: "(n + L + 2) e + (4 e + 1) h + 3 e + (e + 1) (2 m d + 3 d + m), once",
        start: Start::Identity,
        mergeable: false,
        size_key: Some("bottleneck"),
    };

    fn examples() -> Vec<Self> {
        let small = Self {
            bottleneck: 3,
            task_dim: 4,
            hidden: 6,
            ..Self::default()
        };
        vec![
            small.clone(),
            Self {
                tasks: 3,
                layer_norm: false,
                interpolate: Some(vec![0.3, 0.7, -0.1]),
                ..small.clone()
            },
            Self { tasks: 2, ..small },
        ]
    }
}

impl Method for Hyper {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        self.shape(geometry).check("task_dim")?;
        check::size("tasks", self.tasks)?;
        check::size("tasks * task_dim", self.tasks * self.task_dim)?;
        check::dropout(self.dropout)?;
        self.check_interpolation()
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        Some(SharedSlot::new(TaskHyperNet::new(
            self,
            self.shape(geometry),
            init,
        )))
    }

    fn tap(&self, layer: usize, role: Role, d: usize, _init: &mut Init) -> Option<TapSlot> {
        Some(TapSlot::new(HyperAdapter {
            widths: (d, self.bottleneck),
            dropout: DropoutConfig::new(self.dropout).init(),
            place: Place::new(layer, role)?,
            non_linearity: self.non_linearity,
        }))
    }

    fn tasks(&self) -> Option<usize> {
        // A mixed embedding takes the place of every task's.
        self.interpolate.is_none().then_some(self.tasks)
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let shape = self.shape(geometry);
        let norm = match self.layer_norm {
            true => 2 * shape.d * (shape.e + 1),
            false => 0,
        };
        self.tasks * shape.e + shape.parameters() + norm
    }

    fn size(&self) -> Option<u64> {
        Some(self.bottleneck as u64)
    }
}

/// The hypernetwork with the embeddings of the tasks.
#[derive(Module, Debug)]
struct TaskHyperNet {
    /// `[tasks, e]`
    tasks: Param<Tensor<2>>,
    net: HyperNet,
    /// Make the factors and the shifts of the norm, `[d]` each.
    norm: Option<(Generator, Generator)>,
    #[module(skip)]
    interpolate: Option<Vec<f64>>,
}

impl TaskHyperNet {
    fn new(method: &Hyper, shape: HyperShape, init: &mut Init) -> Self {
        let HyperShape { d, m, e, .. } = shape;
        // Without the norm a zero up projection is the identity; with it the norm's zero factors
        // are, and the up projection must not be zero for those to get gradients.
        let (down, up) = match method.layer_norm {
            true => (1.0 / (d as f64).sqrt(), 1.0 / (m as f64).sqrt()),
            false => (1.0 / (d as f64).sqrt(), 0.0),
        };
        let norm = method.layer_norm.then(|| {
            (
                Generator::new(e, d, 0.0, init),
                Generator::new(e, d, 0.0, init),
            )
        });
        Self {
            tasks: Param::from_tensor(init.normal([method.tasks, e], 1.0)),
            net: HyperNet::new(shape, (down, up), init),
            norm,
            interpolate: method.interpolate.clone(),
        }
    }

    /// The embeddings of the rows' tasks, `[rows, e]`; a single row where all are alike.
    fn context(&self, ids: Option<Tensor<1, Int>>) -> Tensor<2> {
        let tasks = self.tasks.val();
        let [count, _] = tasks.dims();
        match (&self.interpolate, ids) {
            (Some(weights), _) => {
                let weights: Vec<f32> = weights.iter().map(|weight| *weight as f32).collect();
                let weights = Tensor::<1>::from_floats(weights.as_slice(), &tasks.device());
                weights.unsqueeze::<2>().matmul(tasks)
            }
            (None, Some(ids)) if count > 1 => tasks.select(0, ids),
            _ => tasks.narrow(0, 0, 1),
        }
    }

    /// The weights at a place for each row of the context, `[rows, e]`.
    fn weights(&self, place: Place, (d, m): (usize, usize), context: Tensor<2>) -> Weights {
        let embedding = self.net.embed(context, place);
        let [rows, _] = embedding.dims();
        let make = |generator: &Generator| generator.forward(embedding.clone());
        Weights {
            down: make(&self.net.down).reshape([rows, d, m]),
            down_bias: make(&self.net.down_bias),
            up: make(&self.net.up).reshape([rows, m, d]),
            up_bias: make(&self.net.up_bias),
            norm: self
                .norm
                .as_ref()
                .map(|(gamma, beta)| (make(gamma), make(beta))),
        }
    }
}

/// An adapter behind a sublayer whose weights the shared network makes.
#[derive(Module, Debug)]
struct HyperAdapter {
    widths: (usize, usize),
    dropout: Dropout,
    #[module(skip)]
    place: Place,
    #[module(skip)]
    non_linearity: Activation,
}

impl Tap for HyperAdapter {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let y = sublayer.output;
        let net: &TaskHyperNet = pass.shared();
        // The same in every layer, so that it is made once.
        let context = pass.once(net.tasks.id, || net.context(pass.text().tasks));
        let weights = net.weights(self.place, self.widths, context);
        self.dropout
            .forward(weights.forward(y.clone(), self.non_linearity))
            + y
    }

    fn settled(&self, pass: &Pass<'_>) -> Option<TapSlot> {
        let net: &TaskHyperNet = pass.shared();
        let context = match net.interpolate {
            Some(_) => net.context(None),
            None => net.tasks.val(),
        };
        let weights = net.weights(self.place, self.widths, context);
        Some(TapSlot::new(MadeAdapter::new(weights, self.non_linearity)))
    }
}

#[cfg(test)]
mod tests;
