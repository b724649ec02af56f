//! The look at training data that some methods take before they are put into the model.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use models::Model;
use peft_core::{Adapted, Batches, Looked, Method, Tokens};

use crate::batching::{Targets, TrainBatch};
use crate::data::Example;
use crate::study::{Task, TrainConfig};
use crate::train::{arrange, order};
use crate::trainee::Trainee;
use crate::trial::StorageSpec;

/// Training data that a method may look at.
pub struct Ahead<'a> {
    /// The task, by which examples make batches.
    pub task: &'a Task,
    /// The training examples.
    pub examples: &'a [Example],
    /// The training settings.
    pub train: &'a TrainConfig,
    /// Seed of the run.
    pub seed: u64,
    /// The device of the run.
    pub device: &'a Device,
}

impl Ahead<'_> {
    /// Lets a method look at the batches that the run will begin with; gives it as it is after that,
    /// and the seconds it took. None where it does not want to.
    ///
    /// # Errors
    /// As [`peft_core::look`].
    pub fn look(
        &self,
        model: &Model,
        method: &dyn Method,
        storage: &StorageSpec,
    ) -> Result<Option<(Looked, f64)>> {
        let (wanted, size) = (method.looks_at(), self.train.batch_size);
        if wanted == 0 {
            return Ok(None);
        }
        let started = Instant::now();
        let epoch = order(self.task, self.examples, size, self.seed, 0);
        let rows = epoch.iter().take(wanted);
        let batches = rows.map(|rows| arrange(self.train)(rows, model, self.device));
        let run = (self.seed, self.device);
        let looked = look(model, method, storage, batches.collect(), run)?;
        Ok(looked.map(|looked| (looked, started.elapsed().as_secs_f64())))
    }
}

/// Lets a method look at these batches, those it wants of them; `run` is its seed and device.
///
/// # Errors
/// As [`peft_core::look`].
pub fn look(
    model: &Model,
    method: &dyn Method,
    storage: &StorageSpec,
    mut batches: Vec<TrainBatch>,
    run: (u64, &Device),
) -> Result<Option<Looked>> {
    batches.truncate(method.looks_at());
    Ok(peft_core::look(
        model,
        method,
        storage.build(),
        &Given(batches),
        run,
    )?)
}

/// Batches on the device of the run.
struct Given(Vec<TrainBatch>);

impl Batches<Model> for Given {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn tokens(&self, index: usize) -> Tokens {
        let TrainBatch { batch, targets, .. } = &self.0[index];
        let (shape, device) = (batch.ids.dims(), batch.ids.device());
        let real = match &batch.mask {
            Some(mask) => mask.clone(),
            None => Tensor::ones(shape, &device),
        };
        let learned = match targets {
            Targets::Classes { .. } => real.clone(),
            Targets::Tokens { places, .. } => Tensor::from_data(learned(places, shape), &device),
        };
        Tokens { real, learned }
    }

    fn loss(&self, index: usize, model: &Adapted<Model>) -> Tensor<1> {
        Trainee::loss_of(model, &self.0[index])
    }
}

/// 1 at the tokens that follow these places.
fn learned(places: &Tensor<1, Int>, shape: [usize; 2]) -> TensorData {
    let mut learned = vec![0f32; shape[0] * shape[1]];
    for place in places.to_data().iter::<i64>() {
        learned[place as usize + 1] = 1.0;
    }
    TensorData::new(learned, shape)
}
