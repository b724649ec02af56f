//! The second seam: what sits on a sublayer and changes its output.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::erased::{DynModule, Holder};
use crate::pass::Pass;
use crate::projection::short_type_name;

/// A sublayer (attention or feed-forward) just before its residual sum.
pub struct Sublayer<'a> {
    /// The residual stream the sublayer's output will be added to, `[batch, sequence, d]`; the
    /// output itself for a whole layer, where nothing is added any more.
    pub residual: Tensor<3>,
    /// The sublayer's output, `[batch, sequence, d]`.
    pub output: Tensor<3>,
    /// The layer norm that follows the sum, in models that have one there (the BERT family).
    pub norm: Option<&'a dyn Fn(Tensor<3>) -> Tensor<3>>,
}

impl Sublayer<'_> {
    /// The sum of residual and output, normalised where the model normalises after the sum.
    pub fn summed(&self) -> Tensor<3> {
        let sum = self.residual.clone() + self.output.clone();
        match self.norm {
            Some(norm) => norm(sum),
            None => sum,
        }
    }
}

impl<'a> Sublayer<'a> {
    /// A whole layer's output.
    pub fn whole_layer(output: Tensor<3>) -> Self {
        Self {
            residual: output.clone(),
            output,
            norm: None,
        }
    }
}

/// Sits on a sublayer: maps `(residual, output)` to the output that takes the old one's place.
pub trait Tap: Module + 'static {
    /// The new output, `[batch, sequence, d]`; the model adds it to the residual stream, but for a
    /// whole layer's.
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3>;

    /// The same with all it makes of parameters alone made for good, where it makes any; it reads
    /// nothing that the layers of a pass share, and cannot be trained any more.
    fn settled(&self, _pass: &Pass<'_>) -> Option<TapSlot> {
        None
    }
}

/// Object-safe form of [`Tap`]; implemented for every one of them.
pub trait DynTap: DynModule {
    #[doc(hidden)]
    fn boxed(&self) -> Box<dyn DynTap>;
    #[doc(hidden)]
    fn describe(&self) -> String;
    #[doc(hidden)]
    fn run(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3>;
    #[doc(hidden)]
    fn settle(&self, pass: &Pass<'_>) -> Option<TapSlot>;
}

impl<T: Tap> DynTap for Holder<T> {
    fn boxed(&self) -> Box<dyn DynTap> {
        Box::new(self.clone())
    }
    fn describe(&self) -> String {
        short_type_name::<T>().into()
    }
    fn run(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        self.get().forward(sublayer, pass)
    }
    fn settle(&self, pass: &Pass<'_>) -> Option<TapSlot> {
        self.get().settled(pass)
    }
}

/// Any [`Tap`]. Models hold an `Option<TapSlot>` at every sublayer.
#[derive(Debug)]
pub struct TapSlot(Box<dyn DynTap>);

erased_module!(TapSlot, DynTap);

impl TapSlot {
    /// Erases a tap.
    pub fn new<T: Tap>(tap: T) -> Self {
        Self(Box::new(Holder::new(tap)))
    }

    /// The same with all it makes of parameters alone made for good; see [`Tap::settled`].
    pub fn settled(&self, pass: &Pass<'_>) -> Option<Self> {
        self.0.settle(pass)
    }

    /// The residual stream with a sublayer's output added, which the tap changes if there is one; of
    /// a model without a layer norm after the sum.
    pub fn onto(
        slot: Option<&Self>,
        residual: Tensor<3>,
        output: Tensor<3>,
        pass: &Pass<'_>,
    ) -> Tensor<3> {
        let sublayer = Sublayer {
            residual: residual.clone(),
            output,
            norm: None,
        };
        residual + Self::apply(slot, sublayer, pass)
    }

    /// The sublayer's output, changed by the tap if there is one.
    pub fn apply(slot: Option<&Self>, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        match slot {
            Some(tap) => tap.0.run(sublayer, pass),
            None => sublayer.output,
        }
    }
}
