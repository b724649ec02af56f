//! Several adapters on one base at once, each with a weight.
//!
//! At every seam the blend computes `base + sum of weight * (adapted - base)`: for methods that add
//! to linear layers this is the sum of their weighted updates, for adapters on sublayers (weights
//! that sum to 1) AdapterHub's averaging. Base parameters the methods train are blended alike, and
//! virtual tokens as if those of the base were zero.

mod seams;
mod weight;

use std::collections::{HashMap, VecDeque};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

pub(crate) use self::seams::{
    BlendAttend, BlendEnds, BlendLinear, BlendLookup, BlendTap, Weighted,
};
pub use self::weight::Weight;
use crate::attend::AttendSlot;
use crate::compose::SharedParts;
use crate::ends::EndsSlot;
use crate::error::CoreError;
use crate::host::{Adapted, Host, Surgeon};
use crate::lookup::LookupSlot;
use crate::pass::{Pass, SharedSlot};
use crate::projection::{Dense, Proj, Projection};
use crate::site::{Role, Site};
use crate::tap::TapSlot;

/// One base with several adapters, each with its weight, ready to compute without gradients.
/// `adapted` must be made from clones of `base`.
///
/// # Errors
/// If there is none, a weight is not finite, an adapter makes copies of texts, or the adapters number
/// positions differently or have different numbers of virtual tokens.
pub fn blend<H: Host>(base: H, adapted: Vec<(f64, Adapted<H>)>) -> Result<Adapted<H>, CoreError> {
    let Some((_, first)) = adapted.first() else {
        return Err(CoreError::bad_value("adapters", 0, "at least one"));
    };
    let position_offset = first.position_offset;
    for (weight, part) in &adapted {
        if part.copies != 1 {
            let expected =
                "1 in a blend: an adapter that keeps its parts apart has no other beside it";
            return Err(CoreError::bad_value(
                "copies of a text",
                part.copies,
                expected,
            ));
        }
        if !weight.is_finite() {
            return Err(CoreError::bad_value("weight", weight, "a finite number"));
        }
        if part.position_offset != position_offset {
            let expected = "the same for all adapters of a blend";
            let found = part.position_offset;
            return Err(CoreError::bad_value("position offset", found, expected));
        }
    }
    let shared = adapted.iter().map(|(_, part)| part.shared.clone());
    let shared = Some(SharedSlot::new(SharedParts::new(shared.collect())));
    let mut blender = Blender {
        parts: adapted.iter().map(Part::of).collect(),
        pass: Pass::with_shared(shared.as_ref()),
    };
    check_virtual_tokens(&blender.parts)?;
    let shifts = shifts(&base, &adapted);
    let host = base.map(&mut Shift(shifts)).rebuild(&mut blender);
    Ok(Adapted {
        host,
        shared,
        position_offset,
        copies: 1,
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
    ends: VecDeque<Option<EndsSlot>>,
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
            ends: VecDeque::new(),
        };
        drop(adapted.host.clone().rebuild(&mut part));
        part
    }

    /// How many virtual tokens it puts before every text.
    fn virtual_tokens(&self) -> usize {
        let pass = Pass::with_shared(self.shared.as_ref());
        let mut prompts = self.lookups.iter().filter_map(|lookup| {
            let rows = LookupSlot::prompt(lookup.as_ref(), &pass)?;
            Some(rows.dims()[0])
        });
        prompts.next().unwrap_or(0)
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
        self.ends.push_back(old.clone());
        old
    }
}

/// Refuses virtual tokens that some adapters have and others do not, or have fewer of: there is no
/// token of the base that could stand for a missing one.
fn check_virtual_tokens(parts: &[Part]) -> Result<(), CoreError> {
    let [first, others @ ..] = parts else {
        return Ok(());
    };
    let expected = first.virtual_tokens();
    match others.iter().find(|p| p.virtual_tokens() != expected) {
        None => Ok(()),
        Some(other) => {
            let found = other.virtual_tokens();
            let expected = format!("{expected}, as in the first adapter of the blend");
            Err(CoreError::bad_value("virtual tokens", found, &expected))
        }
    }
}

const IN_STEP: &str = "adapters of one base have the same seams";

struct Blender<'a> {
    parts: Vec<Part>,
    pass: Pass<'a>,
}

impl Blender<'_> {
    /// One seam of every part that fills it.
    fn seam<S: Module>(&mut self, take: impl Fn(&mut Part) -> Option<S>) -> Vec<Weighted<S>> {
        let filled = |(index, part): (usize, &mut Part)| {
            let module = take(part)?;
            Some(Weighted {
                weight: Weight::Fixed(part.weight),
                index,
                module,
            })
        };
        let parts = self.parts.iter_mut().enumerate();
        parts.filter_map(filled).collect()
    }
}

impl Surgeon for Blender<'_> {
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        // A layer that no method wrapped is a plain one still, or packed: the base's own does.
        let is_plain = |proj: &Proj| proj.downcast_ref::<Dense>().is_some();
        let parts = self.seam(|part| {
            let proj = part.projections.pop_front().expect(IN_STEP);
            (!is_plain(&proj)).then_some(proj)
        });
        if parts.is_empty() {
            return base;
        }
        let is_dense = is_plain(&base);
        let blended = BlendLinear { base, parts };
        // Weights that add up are added here, once: a pass then runs one layer and not the base
        // again for each part. A packed weight stays packed, and the base under all of them.
        match is_dense.then(|| blended.merge(&self.pass)).flatten() {
            Some(merged) => Proj::new(merged),
            None => Proj::new(blended),
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
    fn ends(&mut self, _old: Option<EndsSlot>) -> Option<EndsSlot> {
        let parts = self.seam(|part| part.ends.pop_front().expect(IN_STEP));
        (!parts.is_empty()).then(|| EndsSlot::new(BlendEnds { parts }))
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
