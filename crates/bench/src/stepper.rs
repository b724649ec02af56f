//! One optimizer step: batches to gradients to new weights.

use burn::lr_scheduler::LrScheduler;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::train::TrainStep;
use models::Model;
use peft_core::Adapted;

use crate::adversarial::Adversary;
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
    adversary: Option<Adversary>,
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
            adversary: None,
        }
    }

    /// Takes every gradient against this adversary, if there is one.
    #[must_use]
    pub fn against(self, adversary: Option<Adversary>) -> Self {
        Self { adversary, ..self }
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
    fn gradients(&mut self, batch: TrainBatch) -> (f32, GradientsParams) {
        let trainee = self.trainee.as_ref().expect(PRESENT);
        if let Some(adversary) = &mut self.adversary {
            return adversary.gradients(trainee, batch);
        }
        let output = TrainStep::step(trainee, batch);
        (output.item.0.into_scalar::<f32>(), output.grads)
    }

    /// The sum of the batches' losses and the mean of their gradients.
    fn mean_gradients(&mut self, batches: Vec<TrainBatch>) -> (f32, GradientsParams) {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::adamw::AdamW;
    use crate::batching::collate;
    use crate::data::{Example, Target};
    use crate::schedule::Decay;
    use burn::module::{Module, ModuleVisitor, Param};
    use burn::tensor::{Device, Tensor};
    use models::Gpt2Config;
    use peft_core::{Init, adapt};

    fn stepper(device: &Device) -> Stepper {
        let mut init = Init::new(0, device);
        let base = Model::random_gpt2(Gpt2Config::new(64, 16, 32, 2, 2), &mut init).unwrap();
        let model = adapt(base, &peft_adapter::Full {}, None, &mut init).unwrap();
        let schedule = Schedule::new(Decay::Constant, 1e-3, 0, 1);
        Stepper::new(model, AdamW::new(0.0).into(), schedule, 0.0)
    }

    fn examples() -> Vec<Example> {
        let example = |row: u32| Example {
            ids: (0..8).map(|i| (row * 13 + i * 7) % 64).collect(),
            target: Target::Completion(1),
            input: String::new(),
            expected: String::new(),
        };
        (0..4).map(example).collect()
    }

    /// All gradients in the order of the module's parameters.
    pub(crate) fn values(model: &Trainee, grads: &GradientsParams) -> Vec<f32> {
        struct Values<'a>(&'a GradientsParams, Vec<f32>);
        impl ModuleVisitor for Values<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(grad) = self.0.get::<D>(param.id) {
                    self.1.extend(grad.into_data().try_to_vec::<f32>().unwrap());
                }
            }
        }
        let mut values = Values(grads, Vec::new());
        model.visit(&mut values);
        values.1
    }

    #[test]
    fn gradients_of_accumulated_batches_are_those_of_one_batch_of_all_rows() {
        let device = Device::flex().autodiff();
        let mut stepper = stepper(&device);
        let host = stepper.model().host.clone();
        let examples = examples();
        let batch = |rows: &[Example]| {
            let rows: Vec<&Example> = rows.iter().collect();
            collate(&rows, &host, &device)
        };
        let (loss, whole) = stepper.gradients(batch(&examples));
        let (losses, mean) =
            stepper.mean_gradients(vec![batch(&examples[..2]), batch(&examples[2..])]);
        assert!((losses / 2.0 - loss).abs() < 1e-5);
        let (whole, mean) = (
            values(stepper.trainee(), &whole),
            values(stepper.trainee(), &mean),
        );
        let largest = whole.iter().fold(0f32, |max, v| max.max(v.abs()));
        assert!(largest > 0.0 && whole.len() == mean.len());
        for (whole, mean) in whole.iter().zip(&mean) {
            assert!((whole - mean).abs() < 1e-5 * largest, "{whole} {mean}");
        }
    }
}
