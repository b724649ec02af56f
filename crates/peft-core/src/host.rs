//! A model with seams, and the one function that puts a method into it.

use std::collections::HashSet;

use burn::module::{Module, ModuleDisplay, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use crate::attend::AttendSlot;
use crate::ends::EndsSlot;
use crate::error::CoreError;
use crate::geometry::{BaseParam, Geometry, Part};
use crate::init::Init;
use crate::lookup::LookupSlot;
use crate::method::{Method, Storage};
use crate::pass::{Pass, SharedSlot};
use crate::projection::{Dense, Proj};
use crate::site::{Role, Site};
use crate::store::{stored, trains_nothing_packed};
use crate::tap::TapSlot;

/// A model that exposes its seams. It knows no method.
pub trait Host: Module + ModuleDisplay + 'static {
    /// The model's shape.
    fn geometry(&self) -> Geometry;

    /// Walks every seam in order of use and lets the surgeon fill it.
    fn rebuild(self, surgeon: &mut dyn Surgeon) -> Self;

    /// Gives a head that shares the embedding table a copy of its own.
    fn untie_head(self) -> Self {
        self
    }
}

/// Decides what goes into each seam of a [`Host`].
pub trait Surgeon {
    /// What stands in place of this linear layer.
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        base
    }
    /// What sits on this sublayer, given what sat there before.
    fn tap(&mut self, _layer: usize, _role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        old
    }
    /// What sits on the token embedding, given what sat there before.
    fn lookup(&mut self, old: Option<LookupSlot>) -> Option<LookupSlot> {
        old
    }
    /// What sits on both ends of the body, given what sat there before.
    fn ends(&mut self, old: Option<EndsSlot>) -> Option<EndsSlot> {
        old
    }
    /// What replaces this layer's attention core, given what did before.
    fn attend(&mut self, _layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        old
    }
}

/// A model with a method in it.
#[derive(Module, Debug)]
pub struct Adapted<H: Host> {
    /// The model, its seams filled.
    pub host: H,
    /// State the method's layers share.
    pub shared: Option<SharedSlot>,
    /// By how much positions are moved up; see [`Method::position_offset`].
    pub position_offset: usize,
    /// How many copies of every text go through the layers; see [`Method::copies`].
    pub copies: usize,
}

impl<H: Host> Adapted<H> {
    /// A model without any method.
    pub fn plain(host: H) -> Self {
        Self {
            host,
            shared: None,
            position_offset: 0,
            copies: 1,
        }
    }

    /// The context of one forward pass.
    pub fn pass(&self) -> Pass<'_> {
        let mut pass = Pass::with_shared(self.shared.as_ref());
        pass.position_offset = self.position_offset;
        pass.copies = self.copies;
        pass
    }

    /// The same function as a plain model, or none where a part of the method does not merge.
    pub fn merge(self) -> Option<H> {
        let Adapted { host, shared, .. } = self;
        let mut merger = Merger {
            params: host.geometry().params,
            pass: Pass::with_shared(shared.as_ref()),
            complete: true,
        };
        let host = host.rebuild(&mut merger);
        merger.complete.then_some(host)
    }
}

/// The shape of a model as a method will find it: with a head of its own where the method asks for
/// one. Counting on the bare model would miss a head that is tied to the embeddings.
pub fn geometry_for<H: Host>(host: &H, method: &dyn Method) -> Geometry {
    if method.unties_head(&host.geometry()) {
        host.clone().untie_head().geometry()
    } else {
        host.geometry()
    }
}

/// Number of parameters trained when the method is in the model: its own, and the task head unless
/// the method counts that already. `geometry` is the one of [`geometry_for`].
pub fn trained_parameters(geometry: &Geometry, method: &dyn Method) -> usize {
    let head = geometry.count(|p| p.is_task_head() && !method.trains(p));
    method.parameters(geometry) + head
}

/// Whether anything is trained inside the transformer layers or below them, so that the backward
/// pass has to enter them.
pub fn trains_inside(geometry: &Geometry, method: &dyn Method) -> bool {
    let inside = |p: &BaseParam| p.layer.is_some() || p.part == Part::Embedding;
    let adds_something = method.parameters(geometry) > geometry.count(|p| method.trains(p));
    adds_something
        || geometry
            .params
            .iter()
            .any(|p| inside(p) && method.trains(p))
}

/// Puts a method into a model: packs the frozen weights, fills the seams, freezes everything but
/// what the method trains and (for classifiers) the task head.
///
/// The result is on the device of `init`, in training mode if that device tracks gradients.
///
/// # Errors
/// If the configuration makes no sense for this model, or a weight cannot be packed, is packed another
/// way already, or is packed and would be trained.
pub fn adapt<H: Host>(
    host: H,
    method: &dyn Method,
    storage: Option<&dyn Storage>,
    init: &mut Init,
) -> Result<Adapted<H>, CoreError> {
    let geometry = host.geometry();
    method.check(&geometry)?;
    let host = if method.unties_head(&geometry) {
        host.untie_head()
    } else {
        host
    };
    let geometry = Geometry {
        params: host.geometry().params,
        ..geometry
    };

    let host = host.no_grad();
    let preset = method.storage();
    let host = stored(host, Some(method), preset.as_deref().or(storage))?;
    trains_nothing_packed(&host, method, &geometry)?;
    let shared = method.shared(&geometry, init);
    let rows = table_rows(&host, &geometry);
    let mut fitter = Fitter {
        method,
        geometry: &geometry,
        rows,
        init,
        has_ends: false,
    };
    let host = host.rebuild(&mut fitter);
    let without_ends = !fitter.has_ends;
    if without_ends && method.ends(geometry.width, init).is_some() {
        return Err(CoreError::NoSeam {
            method: "the invertible adapter".into(),
            needs: "a seam at both ends of the body".into(),
        });
    }

    let trained: HashSet<ParamId> = geometry
        .params
        .iter()
        .filter(|p| p.is_task_head() || method.trains(p))
        .map(|p| p.id)
        .collect();
    let adapted = Adapted {
        host: host.map(&mut Unfreeze(trained)),
        shared,
        position_offset: method.position_offset(),
        copies: method.copies(),
    };
    Ok(if init.device().is_autodiff() {
        adapted.train()
    } else {
        adapted
    })
}

/// The values of the token embedding, if the model names them after it.
fn table_rows<H: Host>(host: &H, geometry: &Geometry) -> Option<Tensor<2>> {
    struct Finder(ParamId, Option<Tensor<2>>);
    impl ModuleVisitor for Finder {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.id == self.0 && D == 2 {
                self.1 = Some(param.val().reshape([param.dims()[0], param.dims()[D - 1]]));
            }
        }
    }
    let name = format!("{}.weight", geometry.table.path);
    let table = geometry.params.iter().find(|param| param.name == name)?;
    let mut finder = Finder(table.id, None);
    host.visit(&mut finder);
    finder.1
}

struct Fitter<'a> {
    method: &'a dyn Method,
    geometry: &'a Geometry,
    rows: Option<Tensor<2>>,
    init: &'a mut Init,
    has_ends: bool,
}

impl Surgeon for Fitter<'_> {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        self.method.project(site, base, self.init)
    }
    fn tap(&mut self, layer: usize, role: Role, _old: Option<TapSlot>) -> Option<TapSlot> {
        self.method.tap(layer, role, self.geometry.width, self.init)
    }
    fn attend(&mut self, layer: usize, _old: Option<AttendSlot>) -> Option<AttendSlot> {
        self.method.attend_in(layer, self.geometry, self.init)
    }
    fn lookup(&mut self, _old: Option<LookupSlot>) -> Option<LookupSlot> {
        let table = &self.geometry.table;
        match &self.rows {
            Some(rows) => self.method.lookup_from(table, rows, self.init),
            None => self.method.lookup(table, self.init),
        }
    }
    fn ends(&mut self, _old: Option<EndsSlot>) -> Option<EndsSlot> {
        self.has_ends = true;
        self.method.ends(self.geometry.width, self.init)
    }
}

struct Merger<'a> {
    params: Vec<BaseParam>,
    pass: Pass<'a>,
    complete: bool,
}

impl Merger<'_> {
    /// The layer with the identities its parameters have in the base, so that it is exported under
    /// their names. A bias the base does not have keeps its new identity.
    fn identified(&self, site: &Site, dense: Dense) -> Dense {
        let id = |leaf: &str| {
            let name = format!("{}.{leaf}", site.path);
            self.params.iter().find(|p| p.name == name).map(|p| p.id)
        };
        let bias = dense.bias.map(|bias| with_id(bias, id("bias")));
        Dense {
            weight: with_id(dense.weight, id("weight")),
            bias,
        }
    }
}

fn with_id<const D: usize>(param: Param<Tensor<D>>, id: Option<ParamId>) -> Param<Tensor<D>> {
    match id {
        Some(id) => Param::initialized(id, param.val()),
        None => param,
    }
}

impl Surgeon for Merger<'_> {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        match base.merge(&self.pass) {
            Some(dense) => Proj::new(self.identified(site, dense)),
            None => {
                self.complete = false;
                base
            }
        }
    }
    fn tap(&mut self, _layer: usize, _role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        self.complete &= old.is_none();
        old
    }
    fn attend(&mut self, _layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        self.complete &= old.is_none();
        old
    }
    fn ends(&mut self, old: Option<EndsSlot>) -> Option<EndsSlot> {
        self.complete &= old.is_none();
        old
    }
    fn lookup(&mut self, old: Option<LookupSlot>) -> Option<LookupSlot> {
        self.complete &= old.is_none();
        old
    }
}

struct Unfreeze(HashSet<ParamId>);

impl ModuleMapper for Unfreeze {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.0.contains(&param.id) {
            param.set_require_grad(true)
        } else {
            param
        }
    }
}
