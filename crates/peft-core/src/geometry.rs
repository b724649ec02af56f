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
    /// How many transformer layers lie above its own; none outside the layers.
    pub layers_above: Option<usize>,
    /// Whether the checkpoint keeps the transposed matrix.
    pub transposed: bool,
    /// What the linear layer it belongs to does, if that is a place for methods.
    pub role: Option<Role>,
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

/// Whether a module's name is a run of whole components of a parameter's path.
pub fn is_part_of(name: &str, path: &str) -> bool {
    !name.is_empty() && format!(".{path}.").contains(&format!(".{name}."))
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
    /// Number of key (and value) heads.
    pub kv_heads: usize,
    /// Every linear layer a method may adapt, in order of use; the head is not among them.
    pub sites: Vec<Site>,
    /// Every sublayer a method may sit on, in order of use.
    pub taps: Vec<TapSite>,
    /// The token embedding.
    pub table: Table,
    /// Every parameter of the base model.
    pub params: Vec<BaseParam>,
}

/// One sublayer of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct TapSite {
    /// Index of the transformer layer, from 0.
    pub layer: usize,
    /// Which sublayer of it.
    pub role: Role,
    /// The module that holds adapters of this sublayer in AdapterHub: `bert.encoder.layer.0.output`.
    pub path: String,
}

/// The token embedding of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The module's path in the checkpoint: `transformer.wte`.
    pub path: String,
    /// Size of the vocabulary.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
}

impl Geometry {
    /// Width of the queries of a layer, all heads together; it need not be the model's.
    pub fn query_width(&self) -> usize {
        let width = |site: &Site| match site.role {
            Role::Query => Some(site.d_out),
            Role::FusedQkv => Some(site.d_out.saturating_sub(2 * self.kv_width)),
            _ => None,
        };
        self.sites.iter().find_map(width).unwrap_or(self.width)
    }

    /// Whether the checkpoint keeps linear weights as `[in, out]`, as GPT-2's `Conv1D` does.
    pub fn keeps_weights_in_out(&self) -> bool {
        let weight = |p: &&BaseParam| p.role.is_some() && !p.is_bias();
        self.params
            .iter()
            .find(weight)
            .is_some_and(|p| !p.transposed)
    }

    /// Whether a module of this name is part of the base, the task head of a classifier aside. A
    /// language model has `lm_head` also where it is tied to the embedding.
    pub fn has_module(&self, name: &str) -> bool {
        let tied_head = name == "lm_head" && self.task_head_parameters() == 0;
        let mut body = self.params.iter().filter(|p| !p.is_task_head());
        tied_head || body.any(|p| is_part_of(name, &p.name))
    }

    /// The path of a sublayer, if the model has it.
    pub fn tap_path(&self, layer: usize, role: Role) -> Option<&str> {
        let at = |tap: &&TapSite| tap.layer == layer && tap.role == role;
        self.taps.iter().find(at).map(|tap| tap.path.as_str())
    }

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
