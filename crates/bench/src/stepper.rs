//! One optimizer step: batches to gradients to new weights.

use std::collections::HashSet;

use burn::lr_scheduler::LrScheduler;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use burn::train::TrainStep;
use models::Model;
use peft_core::{Adapted, Regulator, Step, regulate, state};

use crate::adversarial::Adversary;
use crate::batching::TrainBatch;
use crate::checkpointing;
use crate::groups::Groups;
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
    groups: Groups,
    schedule: Schedule,
    /// Largest norm of all gradients together; 0 for any.
    clip: f64,
    rate: f64,
    /// Steps taken.
    taken: usize,
    /// Trained parameters that are frozen for now.
    frozen: Vec<ParamId>,
    /// What the method does after every step.
    regulator: Option<Box<dyn Regulator>>,
    /// Whether layers are computed again in the backward pass.
    checkpointing: bool,
    adversary: Option<Adversary>,
}

impl Stepper {
    /// A model before its first step.
    pub fn new(model: Adapted<Model>, groups: Groups, schedule: Schedule, clip: f64) -> Self {
        Self {
            trainee: Some(Trainee { model }),
            optimizer: groups.optimizer(),
            groups,
            schedule,
            clip,
            rate: 0.0,
            taken: 0,
            frozen: Vec::new(),
            regulator: None,
            adversary: None,
            checkpointing: false,
        }
    }

    /// Computes the layers again in the backward pass, in place of keeping their activations, if
    /// asked to; see [`checkpointing`].
    #[must_use]
    pub fn with_checkpointing(self, checkpointing: bool) -> Self {
        Self {
            checkpointing,
            ..self
        }
    }

    /// Takes every gradient against this adversary, if there is one.
    #[must_use]
    pub fn against(self, adversary: Option<Adversary>) -> Self {
        Self { adversary, ..self }
    }

    /// The stepper with what a method does after every step.
    #[must_use]
    pub fn regulated(mut self, regulator: Option<Box<dyn Regulator>>) -> Self {
        self.regulator = regulator;
        self
    }

    /// Freezes what is frozen in an epoch, and nothing else.
    pub fn enter_epoch(&mut self, epoch: usize) {
        let frozen = self.groups.frozen_in(epoch);
        self.set_frozen(frozen);
    }

    /// No gradient is computed for frozen parameters; what the optimizer knows of them stays.
    fn set_frozen(&mut self, frozen: Vec<ParamId>) {
        let thawed = std::mem::replace(&mut self.frozen, frozen.clone());
        let mut trainee = self.trainee.take().expect(PRESENT);
        for (ids, trained) in [(thawed, true), (frozen, false)] {
            if !ids.is_empty() {
                trainee = trainee.set_require_grad_group(ParamGroup::from_ids(ids), trained);
            }
        }
        self.trainee = Some(trainee);
    }

    /// The model as it is now.
    pub fn model(&self) -> &Adapted<Model> {
        &self.trainee().model
    }

    /// The values the adapter would be saved by now, frozen ones too.
    pub fn snapshot(&self) -> state::Tensors {
        let rows = state::parameters(self.model()).into_iter();
        let saved = rows.filter(state::ParamRow::is_saved).map(|row| row.id);
        let wanted: HashSet<_> = saved.chain(self.frozen.iter().copied()).collect();
        state::tensors_of(self.model(), &wanted)
    }

    /// The model after its last step, with nothing frozen that the method trains.
    pub fn into_model(mut self) -> Adapted<Model> {
        self.set_frozen(Vec::new());
        self.trainee.expect(PRESENT).model
    }

    /// Whether the model has the form that its method ends in; see [`Regulator::final_from`].
    pub fn is_of_final_form(&self) -> bool {
        let regulator = self.regulator.as_ref();
        regulator.is_none_or(|regulator| self.taken >= regulator.final_from())
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
        if self.checkpointing {
            return checkpointing::step(trainee, &batch);
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
        self.taken += 1;
        let rates = self.groups.rates(self.rate);
        let Some(mut regulator) = self.regulator.take() else {
            self.trainee = Some(self.optimizer.step(rates, trainee, grads));
            return;
        };
        let kept = handles(&trainee, &grads);
        let trainee = self.optimizer.step(rates, trainee, grads);
        self.regulate(&mut *regulator, trainee, &kept);
        self.regulator = Some(regulator);
    }

    /// Lets the method act on the model, and the optimizer follow.
    fn regulate(
        &mut self,
        regulator: &mut dyn Regulator,
        trainee: Trainee,
        grads: &GradientsParams,
    ) {
        let step = Step {
            number: self.taken,
            gradients: grads,
        };
        let (model, consequences) = regulate(trainee.model, regulator, &step);
        self.trainee = Some(Trainee { model });
        if !consequences.restarted.is_empty() {
            let optimizer = std::mem::replace(&mut self.optimizer, self.groups.optimizer());
            self.optimizer = self.groups.restarted(optimizer, &consequences.restarted);
        }
        if let Some(over) = consequences.rewarm {
            self.schedule.rewarm(over);
        }
    }
}

/// The gradients once more, for after the optimizer took them. The values exist once.
fn handles<M: Module>(module: &M, grads: &GradientsParams) -> GradientsParams {
    struct Handles<'a>(&'a GradientsParams, GradientsParams);
    impl ModuleVisitor for Handles<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                self.1.register(param.id, grad);
            }
        }
    }
    let mut handles = Handles(grads, GradientsParams::new());
    module.visit(&mut handles);
    handles.1
}

const PRESENT: &str = "the model is present between steps";

#[cfg(test)]
pub(crate) mod tests;
