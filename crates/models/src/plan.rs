//! What a model remembers of its parameters: their names, layouts and places.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::{BaseParam, Part, Role, Site, TapSite};

/// What a model remembers of its parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) params: Vec<BaseParam>,
    pub(crate) sites: Vec<Site>,
}

/// Name of a language model's head in checkpoints.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

impl Plan {
    /// The linear layers of a transformer layer, in the order they were built in.
    pub(crate) fn sites_of<const N: usize>(&self, layer: usize) -> [&Site; N] {
        let sites: Vec<_> = self
            .sites
            .iter()
            .filter(|site| site.layer == layer)
            .collect();
        let found = sites.len();
        sites
            .try_into()
            .unwrap_or_else(|_| unreachable!("a layer has {N} linear layers, not {found}"))
    }

    /// A language model's head of its own that starts as a copy of the embedding table, so that
    /// training it leaves the embeddings alone; with the plan that knows of it.
    pub(crate) fn with_head_like(&self, table: &Param<Tensor<2>>) -> (Param<Tensor<2>>, Self) {
        let table = table.val();
        let copy = Tensor::from_data(table.to_data(), &table.device());
        let head = Param::from_tensor(copy);
        let mut plan = self.clone();
        plan.params.push(BaseParam {
            id: head.id,
            name: LM_HEAD.into(),
            shape: head.lazy_shape().to_vec(),
            part: Part::Head,
            layer: None,
            layers_above: None,
            transposed: false,
            role: None,
        });
        (head, plan)
    }

    /// The module's base parameters by their checkpoint names, in the checkpoint's layout.
    pub(crate) fn export<M: Module>(&self, module: &M) -> BTreeMap<String, TensorData> {
        let mut exporter = Exporter {
            plan: self,
            tensors: BTreeMap::new(),
        };
        module.visit(&mut exporter);
        exporter.tensors
    }
}

struct Exporter<'a> {
    plan: &'a Plan,
    tensors: BTreeMap<String, TensorData>,
}

impl ModuleVisitor for Exporter<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(known) = self.plan.params.iter().find(|p| p.id == param.id) else {
            return;
        };
        let value = match known.transposed {
            true => param.val().swap_dims(0, 1),
            false => param.val(),
        };
        self.tensors.insert(known.name.clone(), value.into_data());
    }
}

/// The two sublayers of every layer and the layer itself, by the path of their adapters.
pub(crate) fn tap_sites(layers: usize, path: impl Fn(usize, Role) -> String) -> Vec<TapSite> {
    let roles = |layer| {
        let roles = [Role::AfterAttention, Role::AfterMlp, Role::AfterLayer];
        roles.map(|role| (layer, role))
    };
    let site = |(layer, role)| TapSite {
        layer,
        role,
        path: path(layer, role),
    };
    (0..layers).flat_map(roles).map(site).collect()
}
