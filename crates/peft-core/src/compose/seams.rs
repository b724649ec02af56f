//! What stands at a seam that the parts of a composition fill each in turn.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Int, Tensor};

use crate::attend::{Attend, AttendSlot, Heads};
use crate::ends::{Ends, EndsSlot};
use crate::lookup::{Lookup, LookupSlot};
use crate::pass::{Pass, SharedSlot};
use crate::projection::{Dense, Proj, Projection};
use crate::state::{self, Tensors};
use crate::tap::{Sublayer, Tap, TapSlot};

/// The shared state of every part, in their order; a part sees its own through [`Pass::part`].
#[derive(Module, Debug)]
pub struct SharedParts {
    parts: Vec<Option<SharedSlot>>,
}

impl SharedParts {
    /// The state of every part.
    pub fn new(parts: Vec<Option<SharedSlot>>) -> Self {
        Self { parts }
    }

    pub(crate) fn of_part(&self, index: usize) -> Option<&SharedSlot> {
        self.parts.get(index)?.as_ref()
    }
}

/// The modules that are there, with the pass as their part sees it.
fn each<'a, S>(
    parts: &'a [Option<S>],
    pass: &'a Pass<'_>,
) -> impl DoubleEndedIterator<Item = (&'a S, Pass<'a>)> {
    let numbered = parts.iter().enumerate();
    numbered.filter_map(move |(index, slot)| Some((slot.as_ref()?, pass.part(index))))
}

/// Taps of which each changes what the one before it gave.
#[derive(Module, Debug)]
pub(super) struct TapsInTurn {
    pub(super) parts: Vec<Option<TapSlot>>,
}

impl Tap for TapsInTurn {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let (residual, norm) = (sublayer.residual, sublayer.norm);
        each(&self.parts, pass).fold(sublayer.output, |output, (tap, pass)| {
            let sublayer = Sublayer {
                residual: residual.clone(),
                output,
                norm,
            };
            TapSlot::apply(Some(tap), sublayer, &pass)
        })
    }
}

/// The attention core of the one part that has one.
#[derive(Module, Debug)]
pub(super) struct OnlyAttend {
    pub(super) parts: Vec<Option<AttendSlot>>,
}

impl Attend for OnlyAttend {
    fn forward(&self, heads: Heads, pass: &Pass<'_>) -> Tensor<3> {
        match each(&self.parts, pass).next() {
            Some((attend, pass)) => AttendSlot::apply(Some(attend), heads, &pass),
            None => heads.attend(),
        }
    }
}

/// Token embeddings of which each changes the rows the one before it gave; the virtual tokens of
/// the first come first.
#[derive(Module, Debug)]
pub(super) struct LookupsInTurn {
    pub(super) parts: Vec<Option<LookupSlot>>,
}

impl Lookup for LookupsInTurn {
    fn forward(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        each(&self.parts, pass).fold(rows, |rows, (lookup, pass)| {
            LookupSlot::apply(Some(lookup), &ids, rows, &pass)
        })
    }

    fn prompt(&self, pass: &Pass<'_>) -> Option<Tensor<2>> {
        let parts = each(&self.parts, pass);
        let prompts: Vec<_> = parts
            .filter_map(|(lookup, pass)| LookupSlot::prompt(Some(lookup), &pass))
            .collect();
        (!prompts.is_empty()).then(|| Tensor::cat(prompts, 0))
    }
}

/// Both ends of the body: what enters goes through the first part first, what leaves through the
/// last one first.
#[derive(Module, Debug)]
pub(super) struct EndsInTurn {
    pub(super) parts: Vec<Option<EndsSlot>>,
}

impl Ends for EndsInTurn {
    fn enter(&self, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        each(&self.parts, pass).fold(embedded, |x, (ends, pass)| {
            EndsSlot::enter(Some(ends), x, &pass)
        })
    }
    fn leave(&self, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        each(&self.parts, pass)
            .rev()
            .fold(hidden, |x, (ends, pass)| {
                EndsSlot::leave(Some(ends), x, &pass)
            })
    }
}

/// What a part makes of a linear layer. It sees the pass as its part does.
#[derive(Module, Debug)]
struct Within {
    index: usize,
    part: Proj,
}

/// The layer below a part's own, which sees the pass as it is outside the part.
#[derive(Module, Debug)]
struct Below {
    below: Proj,
}

/// The linear layer with what `project` makes of it for the part of this number, or as it is where
/// that leaves it alone. `values` are those it was trained to, by their names.
pub(super) fn within(
    index: usize,
    base: Proj,
    project: impl FnOnce(Proj) -> Proj,
    values: Option<Tensors>,
    frozen: bool,
) -> Proj {
    let old: HashSet<_> = state::parameters(&base).iter().map(|row| row.id).collect();
    let projected = project(below(base.clone()));
    if projected.downcast_ref::<Below>().is_some() {
        return base;
    }
    let projected = match values {
        Some(values) => state::set(projected, values, "the trained part")
            .expect("the part was trained with this configuration on this base"),
        None => projected,
    };
    let part = match frozen {
        true => projected.map(&mut FreezeNew(old)),
        false => projected,
    };
    Proj::new(Within { index, part })
}

/// A linear layer for the part above it to stand on.
fn below(base: Proj) -> Proj {
    Proj::new(Below { below: base })
}

/// What the part of this number made of a layer, for one that shows it the pass as its own; none
/// where the part left the layer alone.
pub(super) fn made_by(projection: &Proj, index: usize) -> Option<Proj> {
    let within = projection.downcast_ref::<Within>()?;
    (within.index == index).then(|| within.part.clone())
}

struct FreezeNew(HashSet<ParamId>);

impl ModuleMapper for FreezeNew {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.contains(&param.id) {
            true => param,
            false => param.set_require_grad(false),
        }
    }
}

impl Projection for Within {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.part.forward(x, &pass.part(self.index))
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.part.weight(&pass.part(self.index))
    }
    fn bias(&self) -> Option<Tensor<1>> {
        self.part.bias()
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        let pass = pass.part(self.index);
        // On a layer without a plain form it has none either.
        self.part.base()?.merge(&pass)?;
        self.part.merge(&pass)
    }
    fn dims(&self) -> (usize, usize) {
        self.part.dims()
    }
    fn packing(&self) -> Option<String> {
        self.part.packing()
    }
    fn base(&self) -> Option<Proj> {
        self.part.base()
    }
    fn steady(&self, pass: &Pass<'_>) -> Option<Proj> {
        let part = self.part.steady(&pass.part(self.index))?;
        let index = self.index;
        Some(Proj::new(Within { index, part }))
    }
}

impl Projection for Below {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.below.forward(x, pass.outer())
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.below.weight(pass.outer())
    }
    fn bias(&self) -> Option<Tensor<1>> {
        self.below.bias()
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        self.below.merge(pass.outer())
    }
    fn dims(&self) -> (usize, usize) {
        self.below.dims()
    }
    fn packing(&self) -> Option<String> {
        self.below.packing()
    }
    fn base(&self) -> Option<Proj> {
        Some(self.below.clone())
    }
}
