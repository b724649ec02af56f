//! Several adapters on one base at once, each with a weight.
//!
//! At every seam the blend computes `base + sum of weight * (adapted - base)`: for methods that add
//! to linear layers this is the sum of their weighted updates, for adapters on sublayers (weights
//! that sum to 1) AdapterHub's averaging. Base parameters the methods train are blended alike.

use std::collections::{HashMap, VecDeque};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Int, Tensor};

use crate::attend::{Attend, AttendSlot, Heads};
use crate::ends::EndsSlot;
use crate::error::CoreError;
use crate::host::{Adapted, Host, Surgeon};
use crate::lookup::{Lookup, LookupSlot};
use crate::pass::{Pass, SharedSlot};
use crate::projection::{Dense, Proj, Projection};
use crate::site::{Role, Site};
use crate::tap::{Sublayer, Tap, TapSlot};

/// One base with several adapters, each with its weight, ready to compute without gradients.
/// `adapted` must be made from clones of `base`.
///
/// # Errors
/// If there is none, a weight is not finite, or the adapters number positions differently.
pub fn blend<H: Host>(base: H, adapted: Vec<(f64, Adapted<H>)>) -> Result<Adapted<H>, CoreError> {
    let Some((_, first)) = adapted.first() else {
        return Err(CoreError::bad_value("adapters", 0, "at least one"));
    };
    let position_offset = first.position_offset;
    for (weight, part) in &adapted {
        if !weight.is_finite() {
            return Err(CoreError::bad_value("weight", weight, "a finite number"));
        }
        if part.position_offset != position_offset {
            let expected = "the same for all adapters of a blend";
            let found = part.position_offset;
            return Err(CoreError::bad_value("position offset", found, expected));
        }
    }
    let mut blender = Blender {
        parts: adapted.iter().map(Part::of).collect(),
    };
    if let Some(part) = blender.parts.iter().find(|part| part.is_no_difference()) {
        let expected = "of adapters that change what the base computes: virtual tokens and \
                        invertible adapters cannot be blended";
        return Err(CoreError::bad_value("weight", part.weight, expected));
    }
    let shifts = shifts(&base, &adapted);
    let host = base.map(&mut Shift(shifts)).rebuild(&mut blender);
    Ok(Adapted {
        host,
        shared: None,
        position_offset,
    })
}

/// What one adapter put into the seams, in the order in which a rebuild meets them.
struct Part {
    weight: f64,
    shared: Option<SharedSlot>,
    projections: VecDeque<Proj>,
    taps: VecDeque<Option<TapSlot>>,
    attends: VecDeque<Option<AttendSlot>>,
    lookups: VecDeque<Option<LookupSlot>>,
    ends: Option<EndsSlot>,
}

impl Part {
    fn of<H: Host>((weight, adapted): &(f64, Adapted<H>)) -> Self {
        let mut part = Self {
            weight: *weight,
            shared: adapted.shared.clone(),
            projections: VecDeque::new(),
            taps: VecDeque::new(),
            attends: VecDeque::new(),
            lookups: VecDeque::new(),
            ends: None,
        };
        drop(adapted.host.clone().rebuild(&mut part));
        part
    }

    /// Whether it does more than add to what the base computes somewhere: it lengthens the text, or
    /// undoes above the layers what it did below them.
    fn is_no_difference(&self) -> bool {
        let pass = Pass::with_shared(self.shared.as_ref());
        let prompt = |slot: &Option<LookupSlot>| LookupSlot::prompt(slot.as_ref(), &pass).is_some();
        self.ends.is_some() || self.lookups.iter().any(prompt)
    }
}

impl Surgeon for Part {
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        self.projections.push_back(base.clone());
        base
    }
    fn tap(&mut self, _layer: usize, _role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        self.taps.push_back(old.clone());
        old
    }
    fn attend(&mut self, _layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        self.attends.push_back(old.clone());
        old
    }
    fn lookup(&mut self, old: Option<LookupSlot>) -> Option<LookupSlot> {
        self.lookups.push_back(old.clone());
        old
    }
    fn ends(&mut self, old: Option<EndsSlot>) -> Option<EndsSlot> {
        self.ends = old.clone();
        old
    }
}

const IN_STEP: &str = "adapters of one base have the same seams";

struct Blender {
    parts: Vec<Part>,
}

impl Blender {
    /// One seam of every part that fills it.
    fn seam<S: Module>(&mut self, take: impl Fn(&mut Part) -> Option<S>) -> Vec<Weighted<S>> {
        let filled = |part: &mut Part| {
            let module = take(part)?;
            Some(Weighted {
                weight: part.weight,
                module,
                shared: part.shared.clone(),
            })
        };
        self.parts.iter_mut().filter_map(filled).collect()
    }
}

impl Surgeon for Blender {
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        // A layer that no method wrapped is a plain one still, or packed: the base's own does.
        let is_plain = |proj: &Proj| proj.downcast_ref::<Dense>().is_some();
        let parts = self.seam(|part| {
            let proj = part.projections.pop_front().expect(IN_STEP);
            (!is_plain(&proj)).then_some(proj)
        });
        match parts.is_empty() {
            true => base,
            false => Proj::new(BlendLinear { base, parts }),
        }
    }
    fn tap(&mut self, _layer: usize, _role: Role, _old: Option<TapSlot>) -> Option<TapSlot> {
        let parts = self.seam(|part| part.taps.pop_front().expect(IN_STEP));
        (!parts.is_empty()).then(|| TapSlot::new(BlendTap { parts }))
    }
    fn attend(&mut self, _layer: usize, _old: Option<AttendSlot>) -> Option<AttendSlot> {
        let parts = self.seam(|part| part.attends.pop_front().expect(IN_STEP));
        (!parts.is_empty()).then(|| AttendSlot::new(BlendAttend { parts }))
    }
    fn lookup(&mut self, _old: Option<LookupSlot>) -> Option<LookupSlot> {
        let parts = self.seam(|part| part.lookups.pop_front().expect(IN_STEP));
        (!parts.is_empty()).then(|| LookupSlot::new(BlendLookup { parts }))
    }
}

/// What one adapter has at a seam.
#[derive(Module, Debug)]
struct Weighted<S: Module> {
    weight: f64,
    module: S,
    shared: Option<SharedSlot>,
}

impl<S: Module> Weighted<S> {
    /// The pass as the adapter alone would see it.
    fn pass(&self, outer: &Pass<'_>) -> Pass<'_> {
        let mut pass = Pass::with_shared(self.shared.as_ref());
        pass.position_offset = outer.position_offset;
        pass.see(outer.text());
        pass
    }
}

/// `base + sum of weight * (part - base)`
fn mixed<S: Module, const D: usize>(
    base: Tensor<D>,
    parts: &[Weighted<S>],
    run: impl Fn(&Weighted<S>) -> Tensor<D>,
) -> Tensor<D> {
    let add = |sum: Tensor<D>, part: &Weighted<S>| {
        sum + (run(part) - base.clone()).mul_scalar(part.weight)
    };
    parts.iter().fold(base.clone(), add)
}

/// A linear layer under several adapters.
#[derive(Module, Debug)]
struct BlendLinear {
    base: Proj,
    parts: Vec<Weighted<Proj>>,
}

impl Projection for BlendLinear {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let base = self.base.forward(x.clone(), pass);
        mixed(base, &self.parts, |p| {
            p.module.forward(x.clone(), &p.pass(pass))
        })
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let base = self.base.weight(pass);
        mixed(base, &self.parts, |p| p.module.weight(&p.pass(pass)))
    }
    fn bias(&self) -> Option<Tensor<1>> {
        let zeros = || {
            let (_, d_out) = self.dims();
            Tensor::zeros([d_out], &self.base.weight(&Pass::new()).device())
        };
        let any =
            self.base.bias().is_some() || self.parts.iter().any(|p| p.module.bias().is_some());
        let base = self.base.bias().unwrap_or_else(zeros);
        any.then(|| mixed(base, &self.parts, |p| p.module.bias().unwrap_or_else(zeros)))
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        let merges = |p: &Weighted<Proj>| p.module.merge(&p.pass(pass)).is_some();
        self.parts
            .iter()
            .all(merges)
            .then(|| Dense::new(self.weight(pass), self.bias()))
    }
    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

/// A sublayer under several adapters.
#[derive(Module, Debug)]
struct BlendTap {
    parts: Vec<Weighted<TapSlot>>,
}

impl Tap for BlendTap {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let (residual, output, norm) = (sublayer.residual, sublayer.output, sublayer.norm);
        let run = |part: &Weighted<TapSlot>| {
            let sublayer = Sublayer {
                residual: residual.clone(),
                output: output.clone(),
                norm,
            };
            TapSlot::apply(Some(&part.module), sublayer, &part.pass(pass))
        };
        mixed(output.clone(), &self.parts, run)
    }
}

/// An attention core under several adapters.
#[derive(Module, Debug)]
struct BlendAttend {
    parts: Vec<Weighted<AttendSlot>>,
}

impl Attend for BlendAttend {
    fn forward(&self, heads: Heads, pass: &Pass<'_>) -> Tensor<3> {
        mixed(heads.clone().attend(), &self.parts, |p| {
            AttendSlot::apply(Some(&p.module), heads.clone(), &p.pass(pass))
        })
    }
}

/// A token embedding under several adapters.
#[derive(Module, Debug)]
struct BlendLookup {
    parts: Vec<Weighted<LookupSlot>>,
}

impl Lookup for BlendLookup {
    fn forward(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        mixed(rows.clone(), &self.parts, |p| {
            LookupSlot::apply(Some(&p.module), &ids, rows.clone(), &p.pass(pass))
        })
    }
}

/// By how much each base parameter the adapters changed moves: values of any rank, flat.
fn shifts<H: Host>(base: &H, adapted: &[(f64, Adapted<H>)]) -> HashMap<ParamId, Tensor<1>> {
    let original = flat(base, |_| true);
    let mut shifts = HashMap::new();
    for (weight, part) in adapted {
        for (id, value) in flat(&part.host, |id| original.contains_key(&id)) {
            let old = original[&id].clone();
            if value.to_data() == old.to_data() {
                continue;
            }
            let step = (value - old).mul_scalar(*weight);
            let sum = match shifts.remove(&id) {
                Some(sum) => sum + step,
                None => step,
            };
            shifts.insert(id, sum);
        }
    }
    shifts
}

/// Every floating-point parameter, flattened.
fn flat<M: Module>(module: &M, wanted: impl Fn(ParamId) -> bool) -> HashMap<ParamId, Tensor<1>> {
    struct Flat<F>(F, HashMap<ParamId, Tensor<1>>);
    impl<F: Fn(ParamId) -> bool> ModuleVisitor for Flat<F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if (self.0)(param.id) {
                let count = param.lazy_shape().num_elements();
                self.1.insert(param.id, param.val().reshape([count]));
            }
        }
    }
    let mut visitor = Flat(wanted, HashMap::new());
    module.visit(&mut visitor);
    visitor.1
}

struct Shift(HashMap<ParamId, Tensor<1>>);

impl ModuleMapper for Shift {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.remove(&param.id) {
            Some(shift) => param.map(|value| {
                let shape: [usize; D] = value.dims();
                value + shift.reshape(shape)
            }),
            None => param,
        }
    }
}
