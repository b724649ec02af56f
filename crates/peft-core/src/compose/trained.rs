//! An adapter that was trained before, as a part takes it over.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use crate::attend::AttendSlot;
use crate::ends::EndsSlot;
use crate::host::{Adapted, Host, Surgeon};
use crate::lookup::LookupSlot;
use crate::pass::SharedSlot;
use crate::projection::Proj;
use crate::site::{Role, Site};
use crate::state::{self, Tensors};
use crate::tap::TapSlot;

/// What a trained adapter has in the seams of its model.
#[derive(Debug, Default)]
pub struct Trained {
    pub(super) shared: Option<SharedSlot>,
    pub(super) taps: HashMap<(usize, Role), TapSlot>,
    pub(super) attends: HashMap<usize, AttendSlot>,
    pub(super) lookup: Option<LookupSlot>,
    pub(super) ends: Option<EndsSlot>,
    /// Values on linear layers by the path of the layer: the layer below is another one here.
    projections: HashMap<String, Tensors>,
}

impl Trained {
    /// Takes over what an adapted model has and its base, of which it was made, has not.
    pub fn of<H: Host>(base: &H, adapted: &Adapted<H>) -> Self {
        let mut collector = Collector {
            base: state::parameters(base).into_iter().map(|r| r.id).collect(),
            trained: Self {
                shared: adapted.shared.clone(),
                ..Self::default()
            },
        };
        drop(adapted.host.clone().rebuild(&mut collector));
        collector.trained
    }

    /// The values on a linear layer; none where the adapter left it alone.
    pub(super) fn projection(&self, site: &Site) -> Tensors {
        self.projections
            .get(&site.path)
            .cloned()
            .unwrap_or_default()
    }
}

struct Collector {
    base: HashSet<ParamId>,
    trained: Trained,
}

impl Surgeon for Collector {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        let own = own_tensors(&base, &self.base);
        if !own.is_empty() {
            self.trained.projections.insert(site.path.clone(), own);
        }
        base
    }
    fn tap(&mut self, layer: usize, role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        let tap = old.clone();
        self.trained
            .taps
            .extend(tap.map(|tap| ((layer, role), tap)));
        old
    }
    fn attend(&mut self, layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        self.trained.attends.extend(old.clone().map(|a| (layer, a)));
        old
    }
    fn lookup(&mut self, old: Option<LookupSlot>) -> Option<LookupSlot> {
        self.trained.lookup = old.clone();
        old
    }
    fn ends(&mut self, old: Option<EndsSlot>) -> Option<EndsSlot> {
        self.trained.ends = old.clone();
        old
    }
}

/// Values of the parameters that are not among `base`, by their names in the module.
fn own_tensors<M: Module>(module: &M, base: &HashSet<ParamId>) -> Tensors {
    struct Own<'a> {
        path: Vec<String>,
        base: &'a HashSet<ParamId>,
        tensors: Tensors,
    }
    impl ModuleVisitor for Own<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.base.contains(&param.id) {
                let data = param.val().into_data();
                self.tensors.insert(self.path.join("."), data);
            }
        }
    }
    let mut own = Own {
        path: Vec::new(),
        base,
        tensors: Tensors::new(),
    };
    module.visit(&mut own);
    own.tensors
}

/// Whether a parameter of this name in the module tree belongs to a part of a composition, and not
/// to the base nor to what the composition adds itself.
pub fn is_of_a_part(name: &str) -> bool {
    let markers = ["part", "parts", "below"];
    let mut components = name.rsplit('.');
    let nearest = components.find(|component| markers.contains(component));
    nearest.is_some_and(|marker| marker != "below")
}
