//! What stands at a seam that several adapters fill.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use super::Weight;
use crate::attend::{Attend, AttendSlot, Heads};
use crate::ends::{Ends, EndsSlot};
use crate::lookup::{Lookup, LookupSlot};
use crate::pass::Pass;
use crate::projection::{Dense, Proj, Projection};
use crate::tap::{Sublayer, Tap, TapSlot};

/// What one adapter has at a seam.
#[derive(Module, Debug)]
pub(crate) struct Weighted<S: Module> {
    #[module(skip)]
    pub(crate) weight: Weight,
    /// Its number among the adapters, whose shared state lies in that order.
    pub(crate) index: usize,
    pub(crate) module: S,
}

/// `base + sum of weight * (part - base)` of parameters, for adapters with fixed weights.
fn summed<S: Module, const D: usize>(
    base: Tensor<D>,
    parts: &[Weighted<S>],
    value: impl Fn(&Weighted<S>) -> Tensor<D>,
) -> Tensor<D> {
    let add = |sum: Tensor<D>, part: &Weighted<S>| {
        sum + (value(part) - base.clone()).mul_scalar(part.weight.fixed())
    };
    parts.iter().fold(base.clone(), add)
}

/// The same of activations, `[batch, sequence, d]`; a part sees the pass as its own.
fn mixed<S: Module>(
    base: Tensor<3>,
    parts: &[Weighted<S>],
    pass: &Pass<'_>,
    run: impl Fn(&S, &Pass<'_>) -> Tensor<3>,
) -> Tensor<3> {
    let add = |sum: Tensor<3>, part: &Weighted<S>| {
        let change = run(&part.module, &pass.part(part.index)) - base.clone();
        sum + part.weight.on(change, pass)
    };
    parts.iter().fold(base.clone(), add)
}

/// The parts with those settled that can be, or none where none can.
fn settled<S: Module>(
    parts: &[Weighted<S>],
    pass: &Pass<'_>,
    settle: impl Fn(&S, &Pass<'_>) -> Option<S>,
) -> Option<Vec<Weighted<S>>> {
    let mut any = false;
    let mut one = |part: &Weighted<S>| {
        let new = settle(&part.module, &pass.part(part.index));
        any |= new.is_some();
        Weighted {
            weight: part.weight,
            index: part.index,
            module: new.unwrap_or_else(|| part.module.clone()),
        }
    };
    let parts = parts.iter().map(&mut one).collect();
    any.then_some(parts)
}

/// A linear layer under several adapters.
#[derive(Module, Debug)]
pub(crate) struct BlendLinear {
    pub(crate) base: Proj,
    pub(crate) parts: Vec<Weighted<Proj>>,
}

impl Projection for BlendLinear {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let base = self.base.forward(x.clone(), pass);
        mixed(base, &self.parts, pass, |proj, pass| {
            proj.forward(x.clone(), pass)
        })
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let base = self.base.weight(pass);
        summed(base, &self.parts, |p| p.module.weight(&pass.part(p.index)))
    }
    fn bias(&self) -> Option<Tensor<1>> {
        let zeros = || {
            let (_, d_out) = self.dims();
            Tensor::zeros([d_out], &self.base.weight(&Pass::new()).device())
        };
        let any =
            self.base.bias().is_some() || self.parts.iter().any(|p| p.module.bias().is_some());
        let base = self.base.bias().unwrap_or_else(zeros);
        any.then(|| summed(base, &self.parts, |p| p.module.bias().unwrap_or_else(zeros)))
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        let merges = |p: &Weighted<Proj>| p.module.merge(&pass.part(p.index)).is_some();
        self.parts
            .iter()
            .all(merges)
            .then(|| Dense::new(self.weight(pass), self.bias()))
    }
    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }
    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

/// A sublayer under several adapters.
#[derive(Module, Debug)]
pub(crate) struct BlendTap {
    pub(crate) parts: Vec<Weighted<TapSlot>>,
}

impl Tap for BlendTap {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let (residual, output, norm) = (sublayer.residual, sublayer.output, sublayer.norm);
        let run = |tap: &TapSlot, pass: &Pass<'_>| {
            let sublayer = Sublayer {
                residual: residual.clone(),
                output: output.clone(),
                norm,
            };
            TapSlot::apply(Some(tap), sublayer, pass)
        };
        mixed(output.clone(), &self.parts, pass, run)
    }
    fn settled(&self, pass: &Pass<'_>) -> Option<TapSlot> {
        let parts = settled(&self.parts, pass, TapSlot::settled)?;
        Some(TapSlot::new(Self { parts }))
    }
}

/// An attention core under several adapters.
#[derive(Module, Debug)]
pub(crate) struct BlendAttend {
    pub(crate) parts: Vec<Weighted<AttendSlot>>,
}

impl Attend for BlendAttend {
    fn forward(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let plain = heads.clone().attend();
        mixed(plain, &self.parts, pass, |attend, pass| {
            AttendSlot::apply(Some(attend), heads.clone(), pass)
        })
    }
    fn settled(&self, pass: &Pass<'_>) -> Option<AttendSlot> {
        let parts = settled(&self.parts, pass, AttendSlot::settled)?;
        Some(AttendSlot::new(Self { parts }))
    }
}

/// A token embedding under several adapters.
#[derive(Module, Debug)]
pub(crate) struct BlendLookup {
    pub(crate) parts: Vec<Weighted<LookupSlot>>,
}

impl Lookup for BlendLookup {
    fn forward(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        mixed(rows.clone(), &self.parts, pass, |lookup, pass| {
            LookupSlot::apply(Some(lookup), &ids, rows.clone(), pass)
        })
    }

    /// Virtual tokens the base does not have: the weighted sum of those of all adapters.
    fn prompt(&self, pass: &Pass<'_>) -> Option<Tensor<2>> {
        let weighted = |p: &Weighted<LookupSlot>| {
            let rows = LookupSlot::prompt(Some(&p.module), &pass.part(p.index))?;
            Some(rows.mul_scalar(p.weight.fixed()))
        };
        let rows = self.parts.iter().filter_map(weighted);
        rows.reduce(|sum, rows| sum + rows)
    }

    fn settled(&self, pass: &Pass<'_>) -> Option<LookupSlot> {
        let parts = settled(&self.parts, pass, LookupSlot::settled)?;
        Some(LookupSlot::new(Self { parts }))
    }
}

/// Both ends of the body under several adapters.
#[derive(Module, Debug)]
pub(crate) struct BlendEnds {
    pub(crate) parts: Vec<Weighted<EndsSlot>>,
}

impl Ends for BlendEnds {
    fn enter(&self, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        mixed(embedded.clone(), &self.parts, pass, |ends, pass| {
            EndsSlot::enter(Some(ends), embedded.clone(), pass)
        })
    }
    fn leave(&self, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        mixed(hidden.clone(), &self.parts, pass, |ends, pass| {
            EndsSlot::leave(Some(ends), hidden.clone(), pass)
        })
    }
}
