//! What a method does after the optimizer's steps: masking, merging, starting again.
//!
//! Gradients and an optimizer are all that most methods need. A method that also changes its
//! tensors by rules of its own makes a [`Regulator`], which whoever trains calls after every step.

use burn::module::ParamId;
use burn::optim::GradientsParams;

use crate::host::{Adapted, Host, Surgeon};

/// Acts on a model after every step of the optimizer.
pub trait Regulator: Send {
    /// Changes what is to be changed, and says what that means for the optimizer.
    fn after_step(&mut self, step: &Step<'_>, model: &mut dyn Seams) -> Consequences;

    /// The first step whose model is of the form that the method ends in: an earlier one is none to
    /// stop at.
    fn final_from(&self) -> usize {
        0
    }
}

/// A step the optimizer has just taken.
pub struct Step<'a> {
    /// Its number, counted from 1.
    pub number: usize,
    /// The gradients it was taken with; frozen parameters have none.
    pub gradients: &'a GradientsParams,
}

/// What a regulator's changes mean for the optimizer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Consequences {
    /// Parameters whose optimizer state starts anew.
    pub restarted: Vec<ParamId>,
    /// How many steps the learning rate takes to rise again from zero.
    pub rewarm: Option<usize>,
}

/// A model whose seams can be reached, whatever its type.
pub trait Seams {
    /// Walks every seam in order of use; a parameter that a surgeon changes must keep its identity.
    fn operate(&mut self, surgeon: &mut dyn Surgeon);
}

/// Lets a regulator act on a model.
pub fn regulate<H: Host>(
    adapted: Adapted<H>,
    regulator: &mut dyn Regulator,
    step: &Step<'_>,
) -> (Adapted<H>, Consequences) {
    let mut open = Open(Some(adapted));
    let consequences = regulator.after_step(step, &mut open);
    (open.0.expect(PRESENT), consequences)
}

/// A model that can be taken out for a walk through its seams.
struct Open<H: Host>(Option<Adapted<H>>);

const PRESENT: &str = "the model is put back after every walk";

impl<H: Host> Seams for Open<H> {
    fn operate(&mut self, surgeon: &mut dyn Surgeon) {
        let adapted = self.0.take().expect(PRESENT);
        self.0 = Some(Adapted {
            host: adapted.host.rebuild(surgeon),
            ..adapted
        });
    }
}
