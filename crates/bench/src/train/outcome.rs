//! What training leaves, and why it may have ended early.

use models::Model;
use peft_core::Adapted;
use report::record::{CurvePoint, TimeInfo};

/// What training leaves, however it ended.
pub struct Outcome {
    /// The trained model, or why there is none.
    pub model: Result<Adapted<Model>, Stopped>,
    /// Losses and dev scores along the way.
    pub curve: Vec<CurvePoint>,
    /// Times; evaluation counted apart.
    pub time: TimeInfo,
    /// Largest resident set of the process in training, in bytes, evaluations along the way left
    /// out; 0 where the system does not tell.
    pub peak: u64,
}

/// Why training ended without a model.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The loss stopped being finite.
    #[error("the loss was {loss} at step {step}")]
    Diverged {
        /// Optimizer steps taken.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// The loss on dev stopped being finite.
    #[error("the loss on dev was {loss} after step {step}")]
    DivergedOnDev {
        /// Optimizer steps taken.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// The time limit was reached.
    #[error("stopped at step {step} after {minutes} minutes")]
    Timeout {
        /// Optimizer steps taken.
        step: usize,
        /// The limit.
        minutes: f64,
    },
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Outcome {
    /// What is left where training could not begin.
    pub(super) fn without_a_step(error: anyhow::Error) -> Self {
        Self {
            model: Err(error.into()),
            curve: Vec::new(),
            time: TimeInfo::default(),
            peak: 0,
        }
    }
}
