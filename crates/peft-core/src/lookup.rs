//! The fourth seam: the token embedding, where ids become vectors.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use crate::erased::{DynModule, Holder};
use crate::pass::Pass;
use crate::projection::short_type_name;

/// Changes the rows that a token embedding gives.
pub trait Lookup: Module + 'static {
    /// The new rows.
    ///
    /// # Shapes
    /// - ids: `[batch, sequence]`
    /// - rows: `[batch, sequence, d]`, of the base's table
    /// - output: `[batch, sequence, d]`
    fn forward(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;
}

/// Object-safe form of [`Lookup`]; implemented for every one of them.
pub trait DynLookup: DynModule {
    #[doc(hidden)]
    fn boxed(&self) -> Box<dyn DynLookup>;
    #[doc(hidden)]
    fn describe(&self) -> String;
    #[doc(hidden)]
    fn run(&self, ids: Tensor<2, Int>, rows: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;
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
