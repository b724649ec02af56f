//! Small methods of this crate for the examples of compositions.

use crate::{Compacter, Houlsby, Parallel, Pfeiffer};
use peft_core::MethodConfig;

/// A Pfeiffer, a Houlsby and a parallel adapter.
pub(crate) fn bottlenecks() -> (Pfeiffer, Houlsby, Parallel) {
    let pfeiffer = Pfeiffer {
        bottleneck: Some(3),
        ..Pfeiffer::default()
    };
    let houlsby = Houlsby {
        bottleneck: Some(2),
        ..Houlsby::default()
    };
    let parallel = Parallel {
        bottleneck: Some(2),
        ..Parallel::default()
    };
    (pfeiffer, houlsby, parallel)
}

/// A method whose layers share state.
pub(crate) fn compacter() -> Compacter {
    Compacter::examples().swap_remove(0)
}
