//! One optimizer step: batches to gradients to new weights.

use burn::lr_scheduler::LrScheduler;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::train::TrainStep;
use models::Model;
use peft_core::Adapted;

use crate::batching::TrainBatch;
use crate::schedule::Schedule;
use crate::trainee::{Trainee, clip_global_norm, scale_gradients};

/// A model under training with its optimizer.
///
/// It owns the model, as `burn-train`'s `Learner` does not: that one copies the handle of every
/// weight for each step, which keeps the optimizer from updating weights in place.
pub struct Stepper {
    /// None only while the optimizer has it.
    trainee: Option<Trainee>,
    optimizer: ModuleOptimizer,
    schedule: Schedule,
    /// Largest norm of all gradients together; 0 for any.
    clip: f64,
    rate: f64,
}

impl Stepper {
    /// A model before its first step.
    pub fn new(
        model: Adapted<Model>,
        optimizer: ModuleOptimizer,
        schedule: Schedule,
        clip: f64,
    ) -> Self {
        Self {
            trainee: Some(Trainee { model }),
            optimizer,
            schedule,
            clip,
            rate: 0.0,
        }
    }

    /// The model as it is now.
    pub fn model(&self) -> &Adapted<Model> {
        &self.trainee().model
    }

    /// The model after its last step.
    pub fn into_model(self) -> Adapted<Model> {
        self.trainee.expect(PRESENT).model
    }

    /// Learning rate of the last step.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Takes one step on the mean gradient of some batches; gives their mean loss.
    pub fn step(&mut self, batches: Vec<TrainBatch>) -> f32 {
        self.rate = self.schedule.step();
        let count = batches.len();
        let (loss, grads) = if count == 1 {
            self.gradients(batches.into_iter().next().expect("one batch"))
        } else {
            self.mean_gradients(batches)
        };
        self.apply(grads);
        loss / count as f32
    }

    fn trainee(&self) -> &Trainee {
        self.trainee.as_ref().expect(PRESENT)
    }

    /// The loss of a batch and the gradients of everything that trains.
    fn gradients(&self, batch: TrainBatch) -> (f32, GradientsParams) {
        let output = TrainStep::step(self.trainee(), batch);
        (output.item.0.into_scalar::<f32>(), output.grads)
    }

    /// The sum of the batches' losses and the mean of their gradients.
    fn mean_gradients(&self, batches: Vec<TrainBatch>) -> (f32, GradientsParams) {
        let share = 1.0 / batches.len() as f64;
        let mut sum = GradientsAccumulator::<Trainee>::new();
        let mut losses = 0.0;
        for batch in batches {
            let (loss, grads) = self.gradients(batch);
            losses += loss;
            sum.accumulate(self.trainee(), grads);
        }
        let mean = scale_gradients(self.trainee(), sum.grads(), share);
        (losses, mean)
    }

    fn apply(&mut self, grads: GradientsParams) {
        let trainee = self.trainee.take().expect(PRESENT);
        let grads = match self.clip {
            limit if limit > 0.0 => clip_global_norm(&trainee, grads, limit),
            _ => grads,
        };
        self.trainee = Some(self.optimizer.step(self.rate, trainee, grads));
    }
}

const PRESENT: &str = "the model is present between steps";
