//! The fifth seam: both ends of the body, where embeddings enter the layers and where hidden states
//! leave for the head.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::erased::{DynModule, Holder};
use crate::pass::Pass;
use crate::projection::short_type_name;

/// Sits on both ends of the body.
pub trait Ends: Module + 'static {
    /// What goes into the layers in place of the embedding's output, `[batch, sequence, d]`:
    /// behind the positions, and in BERT behind the layer norm of the embedding.
    fn enter(&self, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;

    /// What a language model's head gets in place of the final hidden states,
    /// `[batch, sequence, d]`. Classifiers have no such end.
    fn leave(&self, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;
}

/// Object-safe form of [`Ends`]; implemented for every one of them.
pub trait DynEnds: DynModule {
    #[doc(hidden)]
    fn boxed(&self) -> Box<dyn DynEnds>;
    #[doc(hidden)]
    fn describe(&self) -> String;
    #[doc(hidden)]
    fn run_enter(&self, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;
    #[doc(hidden)]
    fn run_leave(&self, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3>;
}

impl<E: Ends> DynEnds for Holder<E> {
    fn boxed(&self) -> Box<dyn DynEnds> {
        Box::new(self.clone())
    }
    fn describe(&self) -> String {
        short_type_name::<E>().into()
    }
    fn run_enter(&self, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.get().enter(embedded, pass)
    }
    fn run_leave(&self, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.get().leave(hidden, pass)
    }
}

/// Any [`Ends`]. Models hold an `Option<EndsSlot>`.
#[derive(Debug)]
pub struct EndsSlot(Box<dyn DynEnds>);

erased_module!(EndsSlot, DynEnds);

impl EndsSlot {
    /// Erases what sits on the ends.
    pub fn new<E: Ends>(ends: E) -> Self {
        Self(Box::new(Holder::new(ends)))
    }

    /// The embedding's output, changed by the slot if there is one.
    pub fn enter(slot: Option<&Self>, embedded: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        match slot {
            Some(ends) => ends.0.run_enter(embedded, pass),
            None => embedded,
        }
    }

    /// The final hidden states, changed by the slot if there is one.
    pub fn leave(slot: Option<&Self>, hidden: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        match slot {
            Some(ends) => ends.0.run_leave(hidden, pass),
            None => hidden,
        }
    }
}
