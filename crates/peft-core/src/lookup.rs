//! The fourth seam: the token embedding, where ids become vectors.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use crate::erased::{DynModule, Holder};
use crate::pass::Pass;
use crate::projection::short_type_name;

/// Changes the rows that a token embedding gives, or puts virtual tokens before every text.
pub trait Lookup: Module + 'static {
    /// The new rows.
    ///
    /// # Shapes
    /// - ids: `[batch, sequence]`
    /// - rows: `[batch, sequence, d]`, of the base's table
    /// - output: `[batch, sequence, d]`
    fn forward(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;

    /// The rows of virtual tokens that stand before every text, `[n, d]`. The method moves the
    /// positions of the text up by as many ([`Method::position_offset`](crate::Method)).
    fn prompt(&self, _pass: &Pass<'_>) -> Option<Tensor<2>> {
        None
    }

    /// The same without what only training needs, where it has such a part; it reads nothing of a
    /// pass.
    fn settled(&self, _pass: &Pass<'_>) -> Option<LookupSlot> {
        None
    }
}

/// Object-safe form of [`Lookup`]; implemented for every one of them.
pub trait DynLookup: DynModule {
    #[doc(hidden)]
    fn boxed(&self) -> Box<dyn DynLookup>;
    #[doc(hidden)]
    fn describe(&self) -> String;
    #[doc(hidden)]
    fn run(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;
    #[doc(hidden)]
    fn prompt_rows(&self, pass: &Pass<'_>) -> Option<Tensor<2>>;
    #[doc(hidden)]
    fn settle(&self, pass: &Pass<'_>) -> Option<LookupSlot>;
}

impl<L: Lookup> DynLookup for Holder<L> {
    fn boxed(&self) -> Box<dyn DynLookup> {
        Box::new(self.clone())
    }
    fn describe(&self) -> String {
        short_type_name::<L>().into()
    }
    fn run(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.get().forward(ids, rows, pass)
    }
    fn prompt_rows(&self, pass: &Pass<'_>) -> Option<Tensor<2>> {
        self.get().prompt(pass)
    }
    fn settle(&self, pass: &Pass<'_>) -> Option<LookupSlot> {
        self.get().settled(pass)
    }
}

/// Any [`Lookup`]. Models hold an `Option<LookupSlot>` beside their token embedding.
#[derive(Debug)]
pub struct LookupSlot(Box<dyn DynLookup>);

erased_module!(LookupSlot, DynLookup);

impl LookupSlot {
    /// Erases a lookup.
    pub fn new<L: Lookup>(lookup: L) -> Self {
        Self(Box::new(Holder::new(lookup)))
    }

    /// The rows of virtual tokens that stand before every text, if there are any; see
    /// [`Lookup::prompt`].
    pub fn prompt(slot: Option<&Self>, pass: &Pass<'_>) -> Option<Tensor<2>> {
        slot.and_then(|lookup| lookup.0.prompt_rows(pass))
    }

    /// The same without what only training needs; see [`Lookup::settled`].
    pub fn settled(&self, pass: &Pass<'_>) -> Option<Self> {
        self.0.settle(pass)
    }

    /// The rows, changed by the lookup if there is one.
    pub fn apply(
        slot: Option<&Self>,
        ids: &Tensor<2, Int>,
        rows: Tensor<3>,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        match slot {
            Some(lookup) => lookup.0.run(ids.clone(), rows, pass),
            None => rows,
        }
    }
}
