//! What stands at a seam where every part of a composition works on its own copy of the texts. The
//! copies follow each other in the rows of a batch, in the order of the parts; see
//! [`Method::copies`](crate::Method).

use burn::module::Module;
use burn::tensor::Tensor;

use super::seams::settled_parts;
use crate::attend::{Attend, AttendSlot, Heads};
use crate::ends::{Ends, EndsSlot};
use crate::pass::Pass;
use crate::projection::{Dense, Proj, Projection};
use crate::tap::{Sublayer, Tap, TapSlot};

/// The rows of one copy among those of all.
#[derive(Clone, Copy)]
struct Rows {
    copy: usize,
    count: usize,
}

impl Rows {
    fn of<const D: usize>(self, x: &Tensor<D>) -> Tensor<D> {
        x.clone().narrow(0, self.copy * self.count, self.count)
    }
}

/// What the parts give, each on its rows of so many and with the pass as its own. A part that has
/// nothing here is asked too, for its copy goes on as well.
fn apart<S>(
    parts: &[Option<S>],
    all: usize,
    pass: &Pass<'_>,
    run: impl Fn(Option<&S>, Rows, &Pass<'_>) -> Tensor<3>,
) -> Tensor<3> {
    let count = all / parts.len();
    assert_eq!(
        count * parts.len(),
        all,
        "the host repeats the rows of a batch for each of the {} parts",
        parts.len()
    );
    let copies = parts.iter().enumerate().map(|(copy, part)| {
        let rows = Rows { copy, count };
        run(part.as_ref(), rows, &pass.part(copy))
    });
    Tensor::cat(copies.collect(), 0)
}

/// Taps, each on its own copy.
#[derive(Module, Debug)]
pub(super) struct TapsApart {
    pub(super) parts: Vec<Option<TapSlot>>,
}

impl Tap for TapsApart {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let [all, ..] = sublayer.output.dims();
        apart(&self.parts, all, pass, |tap, rows, pass| {
            let own = Sublayer {
                residual: rows.of(&sublayer.residual),
                output: rows.of(&sublayer.output),
                norm: sublayer.norm,
            };
            TapSlot::apply(tap, own, pass)
        })
    }
    fn settled(&self, pass: &Pass<'_>) -> Option<TapSlot> {
        let parts = settled_parts(&self.parts, pass, TapSlot::settled)?;
        Some(TapSlot::new(Self { parts }))
    }
}

/// Attention cores, each on its own copy.
#[derive(Module, Debug)]
pub(super) struct AttendsApart {
    pub(super) parts: Vec<Option<AttendSlot>>,
}

impl Attend for AttendsApart {
    fn forward(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        assert!(heads.texts.is_none(), "copies take rows of their own");
        let [all, ..] = heads.q.dims();
        apart(&self.parts, all, pass, |attend, rows, pass| {
            // The layer's projections take rows of every copy and may differ between them: those of
            // the other copies are made of the same states, and dropped.
            let keys_and_values = |x: Tensor<3>| {
                let [count, ..] = x.dims();
                let (k, v) = (heads.keys_and_values)(x.repeat_dim(0, self.parts.len()));
                let own = Rows { count, ..rows };
                (own.of(&k), own.of(&v))
            };
            let own = Heads {
                input: rows.of(&heads.input),
                q: rows.of(&heads.q),
                k: rows.of(&heads.k),
                v: rows.of(&heads.v),
                key_mask: heads.key_mask.as_ref().map(|mask| rows.of(mask)),
                texts: None,
                spec: heads.spec,
                keys_and_values: &keys_and_values,
            };
            AttendSlot::apply(attend, own, pass)
        })
    }
    fn settled(&self, pass: &Pass<'_>) -> Option<AttendSlot> {
        let parts = settled_parts(&self.parts, pass, AttendSlot::settled)?;
        Some(AttendSlot::new(Self { parts }))
    }
}

/// Both ends of the body, each part's on its own copy.
#[derive(Module, Debug)]
pub(super) struct EndsApart {
    pub(super) parts: Vec<Option<EndsSlot>>,
}

impl Ends for EndsApart {
    fn enter(&self, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let [all, ..] = embedded.dims();
        apart(&self.parts, all, pass, |ends, rows, pass| {
            EndsSlot::enter(ends, rows.of(&embedded), pass)
        })
    }
    fn leave(&self, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let [all, ..] = hidden.dims();
        apart(&self.parts, all, pass, |ends, rows, pass| {
            EndsSlot::leave(ends, rows.of(&hidden), pass)
        })
    }
}

/// What the parts make of a linear layer, each for its own copy.
#[derive(Module, Debug)]
pub(super) struct LinearApart {
    pub(super) base: Proj,
    pub(super) parts: Vec<Option<Proj>>,
}

impl Projection for LinearApart {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let [all, ..] = x.dims();
        apart(&self.parts, all, pass, |part, rows, own| match part {
            Some(part) => part.forward(rows.of(&x), own),
            None => self.base.forward(rows.of(&x), pass),
        })
    }
    /// That of the base, which is all that the copies have in common.
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass)
    }
    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias()
    }
    fn merge(&self, _pass: &Pass<'_>) -> Option<Dense> {
        None
    }
    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
    fn packing(&self) -> Option<String> {
        self.base.packing()
    }
    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }
}
