//! How many steps a run takes, and what they are.

use anyhow::ensure;
use burn::tensor::Device;
use models::Model;
use peft_core::{Adapted, Host, Init, Method};
use rand::Rng;

use super::rng;
use crate::adversarial::Adversary;
use crate::groups::Groups;
use crate::schedule::Schedule;
use crate::stepper::Stepper;
use crate::study::{OneOrMany, TrainConfig};

/// Number of optimizer steps of a run.
pub(super) struct Plan {
    pub(super) steps: usize,
    /// Batches after which dev is evaluated.
    pub(super) evaluate_every: usize,
}

impl Plan {
    pub(super) fn new(examples: usize, config: &TrainConfig) -> Self {
        let batches = examples.div_ceil(config.batch_size).max(1);
        let steps_per_epoch = batches.div_ceil(config.accumulation);
        let evaluate_every = batches.div_ceil(config.evaluations_per_epoch);
        Self {
            steps: steps_per_epoch * config.epochs,
            evaluate_every,
        }
    }
}

/// The model with what the settings and its method say of its steps.
pub(super) fn stepper(
    model: Adapted<Model>,
    method: &dyn Method,
    config: &TrainConfig,
    seed: u64,
    plan: &Plan,
    device: &Device,
) -> anyhow::Result<Stepper> {
    let OneOrMany::One(rate) = config.learning_rate else {
        unreachable!("a trial has one learning rate")
    };
    let (steps, warmup) = (plan.steps, config.warmup_of(plan.steps));
    ensure!(
        config.warmup_steps.is_none() || warmup < steps,
        "`train.warmup_steps` is {warmup}, expected fewer than the run's {steps} steps"
    );
    let schedule = Schedule::new(config.schedule, rate, warmup, steps);
    let groups = Groups::new(&model, method, config)?;
    let init = Init::new(rng(seed, "regulator").random(), device);
    let regulator = method.regulator(steps, init)?;
    let width = model.host.geometry().width;
    let adversary = config.adversarial;
    let adversary = adversary.map(|config| Adversary::new(config, width, seed));
    let stepper = Stepper::new(model, groups, schedule, config.clip);
    let stepper = stepper.with_checkpointing(config.checkpointing);
    Ok(stepper.regulated(regulator).against(adversary))
}
