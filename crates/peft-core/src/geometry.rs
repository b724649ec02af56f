//! The shape of a model as methods see it: enough to check a configuration and count parameters
//! without building anything.

use burn::module::ParamId;

use crate::site::{Role, Site};

/// One parameter of the base model.
#[derive(Clone, Debug)]
pub struct BaseParam {
    /// Identity of the parameter in the module tree.
    pub id: ParamId,
    /// Its name in the checkpoint: `transformer.h.0.ln_1.bias`.
    pub name: String,
    /// Its shape as the module holds it.
    pub shape: Vec<usize>,
    /// What it belongs to.
    pub part: Part,
    /// The transformer layer it belongs to, if any.
    pub layer: Option<usize>,
}

impl BaseParam {
    /// Number of values.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether this is part of a classifier's head, which is new and trained under every method; a
    /// language model's head is part of the base.
    pub fn is_task_head(&self) -> bool {
        self.part == Part::Head && !self.name.starts_with("lm_head")
    }

    /// Whether this is a bias of a linear layer or a norm.
    pub fn is_bias(&self) -> bool {
        self.name.ends_with(".bias")
    }
}

/// What kind of module a base parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A linear layer of a block (or the pooler).
    Linear,
    /// A layer norm.
    Norm,
    /// An embedding table.
    Embedding,
    /// The output head over classes or vocabulary.
    Head,
}

/// The shape of a model: its linear layers, its sublayers, its parameters.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Number of transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the keys (and of the values): `kv_heads * d_head`.
    pub kv_width: usize,
    /// Every linear layer a method may adapt, in order of use; the head is not among them.
    pub sites: Vec<Site>,
    /// Sublayers of each transformer layer, in order of use.
    pub sublayers: Vec<Role>,
    /// Every parameter of the base model.
    pub params: Vec<BaseParam>,
}

impl Geometry {
    /// Parameters of the base model, tied ones once.
    pub fn base_parameters(&self) -> usize {
        self.params.iter().map(BaseParam::numel).sum()
    }

    /// Parameters of the task head.
    pub fn head_parameters(&self) -> usize {
        self.params
            .iter()
            .filter(|p| p.part == Part::Head)
            .map(BaseParam::numel)
            .sum()
    }

    /// Parameters of a classifier's head, 0 for a language model.
    pub fn task_head_parameters(&self) -> usize {
        self.count(BaseParam::is_task_head)
    }

    /// Number of values of the base parameters that `select` picks.
    pub fn count(&self, select: impl Fn(&BaseParam) -> bool) -> usize {
        self.params
            .iter()
            .filter(|p| select(p))
            .map(BaseParam::numel)
            .sum()
    }
}
