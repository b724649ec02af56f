//! What stands at a seam that several adapters fill.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use crate::attend::{Attend, AttendSlot, Heads};
use crate::ends::{Ends, EndsSlot};
use crate::lookup::{Lookup, LookupSlot};
use crate::pass::{Pass, SharedSlot};
use crate::projection::{Dense, Proj, Projection};
use crate::tap::{Sublayer, Tap, TapSlot};

/// What one adapter has at a seam.
#[derive(Module, Debug)]
pub(super) struct Weighted<S: Module> {
    pub(super) weight: f64,
    pub(super) module: S,
    pub(super) shared: Option<SharedSlot>,
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
pub(super) struct BlendLinear {
    pub(super) base: Proj,
    pub(super) parts: Vec<Weighted<Proj>>,
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
    fn base(&self) -> Option<&Proj> {
        Some(&self.base)
    }
    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

/// A sublayer under several adapters.
#[derive(Module, Debug)]
pub(super) struct BlendTap {
    pub(super) parts: Vec<Weighted<TapSlot>>,
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
pub(super) struct BlendAttend {
    pub(super) parts: Vec<Weighted<AttendSlot>>,
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
pub(super) struct BlendLookup {
    pub(super) parts: Vec<Weighted<LookupSlot>>,
}

impl Lookup for BlendLookup {
    fn forward(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        mixed(rows.clone(), &self.parts, |p| {
            LookupSlot::apply(Some(&p.module), &ids, rows.clone(), &p.pass(pass))
        })
    }

    /// Virtual tokens the base does not have: the weighted sum of those of all adapters.
    fn prompt(&self, pass: &Pass<'_>) -> Option<Tensor<2>> {
        let weighted = |p: &Weighted<LookupSlot>| {
            let rows = LookupSlot::prompt(Some(&p.module), &p.pass(pass))?;
            Some(rows.mul_scalar(p.weight))
        };
        let rows = self.parts.iter().filter_map(weighted);
        rows.reduce(|sum, rows| sum + rows)
    }
}

/// Both ends of the body under several adapters.
#[derive(Module, Debug)]
pub(super) struct BlendEnds {
    pub(super) parts: Vec<Weighted<EndsSlot>>,
}

impl Ends for BlendEnds {
    fn enter(&self, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        mixed(embedded.clone(), &self.parts, |p| {
            EndsSlot::enter(Some(&p.module), embedded.clone(), &p.pass(pass))
        })
    }
    fn leave(&self, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        mixed(hidden.clone(), &self.parts, |p| {
            EndsSlot::leave(Some(&p.module), hidden.clone(), &p.pass(pass))
        })
    }
}
