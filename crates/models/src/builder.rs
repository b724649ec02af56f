//! Builds a model's layers from a checkpoint or from random values, and remembers what each
//! parameter is called, so that the same code loads, initialises, counts and saves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Tensor, TensorData};
use peft_core::{
    BaseParam, CoreError, Dense, DenseOnly, Init, PackedLayer, PackedReader, Part, Pass, Proj,
    Role, Site,
};

use crate::norm::{Norm, RmsNorm};
use crate::plan::{LM_HEAD, Plan};

/// Where values come from.
enum Source {
    /// A checkpoint; what is used is taken out.
    Checkpoint(BTreeMap<String, TensorData>),
    /// Fresh random values.
    Random,
}

/// How a checkpoint keeps a linear layer's weight.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// `[out, in]`, PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, GPT-2's `Conv1D`.
    InOut,
}

/// A linear layer as a checkpoint keeps it.
#[derive(Clone, Copy)]
pub(crate) struct Linear {
    layout: Layout,
    d_in: usize,
    d_out: usize,
    bias: bool,
}

impl Linear {
    /// PyTorch's `Linear` of `(d_in, d_out)` features, with a bias.
    pub(crate) fn out_in((d_in, d_out): (usize, usize)) -> Self {
        Self {
            layout: Layout::OutIn,
            d_in,
            d_out,
            bias: true,
        }
    }

    /// GPT-2's `Conv1D` of `(d_in, d_out)` features, with a bias.
    pub(crate) fn in_out(dims: (usize, usize)) -> Self {
        Self {
            layout: Layout::InOut,
            ..Self::out_in(dims)
        }
    }

    /// The layer with a bias, or without one.
    pub(crate) fn biased(self, bias: bool) -> Self {
        Self { bias, ..self }
    }
}

/// Builds layers one by one and collects every problem on the way.
pub(crate) struct Builder<'a> {
    source: Source,
    /// Reads the weights that a checkpoint holds packed.
    packed: &'a dyn PackedReader,
    init: &'a mut Init,
    /// Prefix of the body's tensors, which checkpoints of the bare body leave out: `bert.`.
    body: &'static str,
    layer: Option<usize>,
    /// Standard deviation of fresh weights.
    std: f64,
    plan: Plan,
    problems: Vec<String>,
    new: Vec<String>,
}

/// Problems of a checkpoint that are listed one by one.
const MOST_PROBLEMS: usize = 40;

/// Standard deviation of fresh weights, as in BERT and GPT-2.
pub(crate) const STD: f64 = 0.02;

impl<'a> Builder<'a> {
    /// Takes values from a checkpoint; `init` is for what the checkpoint may lack (a new head).
    pub(crate) fn from_checkpoint(
        tensors: BTreeMap<String, TensorData>,
        body: &'static str,
        init: &'a mut Init,
    ) -> Self {
        Self::new(Source::Checkpoint(tensors), body, init)
    }

    /// Draws fresh weights of this standard deviation.
    pub(crate) fn random(body: &'static str, std: f64, init: &'a mut Init) -> Self {
        Self {
            std,
            ..Self::new(Source::Random, body, init)
        }
    }

    fn new(source: Source, body: &'static str, init: &'a mut Init) -> Self {
        let plan = Plan::default();
        Self {
            source,
            packed: &DenseOnly,
            init,
            body,
            layer: None,
            std: STD,
            plan,
            problems: Vec::new(),
            new: Vec::new(),
        }
    }

    /// Reads packed weights with this.
    pub(crate) fn with_packed(mut self, packed: &'a dyn PackedReader) -> Self {
        self.packed = packed;
        self
    }

    /// Marks what follows as part of this transformer layer.
    pub(crate) fn enter_layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// Whether the source has this tensor (random sources have everything).
    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Random => true,
            Source::Checkpoint(tensors) => {
                tensors.contains_key(name)
                    || name
                        .strip_prefix(self.body)
                        .is_some_and(|n| tensors.contains_key(n))
            }
        }
    }

    /// The tensor of a checkpoint under its full name or without the body's prefix.
    fn take(&mut self, name: &str) -> Option<TensorData> {
        let Source::Checkpoint(tensors) = &mut self.source else {
            return None;
        };
        let bare = name.strip_prefix(self.body);
        tensors
            .remove(name)
            .or_else(|| bare.and_then(|bare| tensors.remove(bare)))
    }

    /// A tensor as the checkpoint keeps it; `fresh` makes it where the source is random.
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        fresh: impl FnOnce(&mut Init) -> Tensor<D>,
    ) -> Tensor<D> {
        if matches!(self.source, Source::Random) {
            return fresh(self.init);
        }
        match self.take(name) {
            None => self.problems.push(format!("missing `{name}` {shape:?}")),
            Some(data) if data.shape().to_vec() != shape => {
                let found = data.shape().to_vec();
                self.problems
                    .push(format!("`{name}` has shape {found:?}, expected {shape:?}"));
            }
            Some(data) if data.dtype() != DType::F32 => {
                let found = data.dtype();
                self.problems
                    .push(format!("`{name}` holds {found:?}, expected floats"));
            }
            Some(data) => return Tensor::from_data(data, self.init.device()),
        }
        // Stands in until `finish` reports the problem; the shape may be beyond any memory.
        self.init.zeros([1; D])
    }

    fn param<const D: usize>(
        &mut self,
        name: &str,
        part: Part,
        value: Tensor<D>,
    ) -> Param<Tensor<D>> {
        let shape = value.dims().to_vec();
        let param = Param::from_tensor(value);
        self.remember(param.id, name, part, shape);
        param
    }

    fn remember(&mut self, id: ParamId, name: &str, part: Part, shape: Vec<usize>) {
        let (name, layer) = (name.to_string(), self.layer);
        self.plan.params.push(BaseParam {
            id,
            name,
            shape,
            part,
            layer,
            layers_above: None,
            transposed: false,
            role: None,
        });
    }

    /// An embedding table `[rows, width]`.
    pub(crate) fn embedding(&mut self, name: &str, rows: usize, width: usize) -> Param<Tensor<2>> {
        let shape = [rows, width];
        let std = self.std;
        let value = self.tensor(name, shape, |init| init.normal(shape, std));
        self.param(name, Part::Embedding, value)
    }

    /// A layer norm.
    pub(crate) fn norm(&mut self, name: &str, width: usize, eps: f64) -> Norm {
        let gamma = self.tensor(&format!("{name}.weight"), [width], |i| i.full([width], 1.0));
        let beta = self.tensor(&format!("{name}.bias"), [width], |i| i.zeros([width]));
        Norm {
            gamma: self.param(&format!("{name}.weight"), Part::Norm, gamma),
            beta: self.param(&format!("{name}.bias"), Part::Norm, beta),
            eps,
        }
    }

    /// A norm by the root mean square.
    pub(crate) fn rms_norm(&mut self, name: &str, width: usize, eps: f64) -> RmsNorm {
        let name = format!("{name}.weight");
        let gamma = self.tensor(&name, [width], |init| init.full([width], 1.0));
        RmsNorm {
            gamma: self.param(&name, Part::Norm, gamma),
            eps,
        }
    }

    /// A language model's head of its own, `[vocab, width]`.
    pub(crate) fn lm_head(&mut self, vocab: usize, width: usize) -> Param<Tensor<2>> {
        let (shape, std) = ([vocab, width], self.std);
        let value = self.tensor(LM_HEAD, shape, |init| init.normal(shape, std));
        self.param(LM_HEAD, Part::Head, value)
    }

    /// A linear layer; fresh ones start with a bias of zero.
    pub(crate) fn linear(&mut self, name: &str, part: Part, linear: Linear) -> Dense {
        let bias = self.bias(name, part, linear);
        // Only the layers that methods may adapt stay packed.
        let value = match self.packed(name, linear, None) {
            Some(packed) => contiguous(packed.weight(&Pass::new())),
            None => self.weight(name, linear),
        };
        self.dense(name, part, linear, value, bias)
    }

    /// A linear layer that methods may adapt.
    pub(crate) fn site(&mut self, name: &str, role: Role, linear: Linear) -> Proj {
        let layer = self.layer.expect("sites lie inside a transformer layer");
        self.plan.sites.push(Site {
            layer,
            role,
            path: name.into(),
            d_in: linear.d_in,
            d_out: linear.d_out,
        });
        let first = self.plan.params.len();
        let proj = self.dense_or_packed(name, linear);
        for param in &mut self.plan.params[first..] {
            param.role = Some(role);
        }
        proj
    }

    fn dense_or_packed(&mut self, name: &str, linear: Linear) -> Proj {
        let bias = self.bias(name, Part::Linear, linear);
        if let Some(packed) = self.packed(name, linear, bias.clone()) {
            let (weight, shape) = (format!("{name}.weight"), vec![linear.d_in, linear.d_out]);
            self.remember(ParamId::new(), &weight, Part::Linear, shape);
            self.mark_layout(linear.layout);
            return packed;
        }
        let value = self.weight(name, linear);
        Proj::new(self.dense(name, Part::Linear, linear, value, bias))
    }

    /// The layer of this name if the checkpoint holds its weight packed.
    fn packed(
        &mut self,
        name: &str,
        linear: Linear,
        bias: Option<Param<Tensor<1>>>,
    ) -> Option<Proj> {
        let (device, bare) = (self.init.device().clone(), name.strip_prefix(self.body));
        let Source::Checkpoint(tensors) = &mut self.source else {
            return None;
        };
        let mut read = |path| {
            let (dims, bias) = ((linear.d_in, linear.d_out), bias.clone());
            self.packed
                .read(PackedLayer { path, dims, bias }, tensors, &device)
        };
        let packed = read(name).or_else(|| bare.and_then(read))?;
        Some(packed.unwrap_or_else(|error| {
            self.problems.push(error.to_string());
            // Stands in until `finish` reports the problem.
            Proj::new(Dense::zeros(1, 1, false, &device))
        }))
    }

    /// A dense weight as `[d_in, d_out]`.
    fn weight(&mut self, name: &str, linear: Linear) -> Tensor<2> {
        let stored = match linear.layout {
            Layout::OutIn => [linear.d_out, linear.d_in],
            Layout::InOut => [linear.d_in, linear.d_out],
        };
        let std = self.std;
        let value = self.tensor(&format!("{name}.weight"), stored, |init| {
            init.normal(stored, std)
        });
        // Own the transposed values: a view would be walked with strides in every product.
        match linear.layout {
            Layout::OutIn => contiguous(value.transpose()),
            Layout::InOut => value,
        }
    }

    fn bias(&mut self, name: &str, part: Part, linear: Linear) -> Option<Param<Tensor<1>>> {
        linear.bias.then(|| {
            let (name, shape) = (format!("{name}.bias"), [linear.d_out]);
            let value = self.tensor(&name, shape, |init| init.zeros(shape));
            self.param(&name, part, value)
        })
    }

    fn dense(
        &mut self,
        name: &str,
        part: Part,
        linear: Linear,
        weight: Tensor<2>,
        bias: Option<Param<Tensor<1>>>,
    ) -> Dense {
        let weight = self.param(&format!("{name}.weight"), part, weight);
        self.mark_layout(linear.layout);
        Dense { weight, bias }
    }

    /// Notes how the checkpoint keeps the parameter that came last.
    fn mark_layout(&mut self, layout: Layout) {
        if let Some(param) = self.plan.params.last_mut() {
            param.transposed = layout == Layout::OutIn;
        }
    }

    /// A linear layer of the task head, which a checkpoint may lack.
    pub(crate) fn head(&mut self, name: &str, dims: (usize, usize)) -> Dense {
        let weight = format!("{name}.weight");
        if self.has(&weight) {
            return self.linear(name, Part::Head, Linear::out_in(dims));
        }
        self.new.push(name.into());
        let source = std::mem::replace(&mut self.source, Source::Random);
        let dense = self.linear(name, Part::Head, Linear::out_in(dims));
        self.source = source;
        dense
    }

    /// Ends the build: what is left in the checkpoint and not `ignored` is an error, as is
    /// everything that was missing or misshapen.
    ///
    /// Returns the plan and the names of new layers.
    pub(crate) fn finish(
        mut self,
        file: &Path,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<(Arc<Plan>, Vec<String>), CoreError> {
        if let Source::Checkpoint(tensors) = &self.source {
            let extra = tensors.keys().filter(|name| !ignored(name));
            self.problems
                .extend(extra.map(|name| format!("`{name}` has no place in the model")));
        }
        let highest = self.plan.params.iter().filter_map(|p| p.layer).max();
        for param in &mut self.plan.params {
            param.layers_above = param.layer.and_then(|layer| Some(highest? - layer));
        }
        if self.problems.is_empty() {
            return Ok((Arc::new(self.plan), self.new));
        }
        // A wrong size shows in every layer; the first lines tell as much as all of them.
        let more = self.problems.len().saturating_sub(MOST_PROBLEMS);
        self.problems.truncate(MOST_PROBLEMS);
        if more > 0 {
            self.problems.push(format!("and {more} more"));
        }
        Err(CoreError::Mismatch {
            file: file.display().to_string(),
            problems: self.problems,
        })
    }
}

/// The same values in row-major order of their own.
fn contiguous(tensor: Tensor<2>) -> Tensor<2> {
    let device = tensor.device();
    Tensor::from_data(tensor.into_data(), &device)
}
