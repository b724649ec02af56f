//! Which examples make a batch, and how they lie in it.

use burn::tensor::Device;
use models::Model;

use crate::batching::{TrainBatch, collate, pack};
use crate::data::Example;
use crate::mixture;
use crate::study::{Task, TrainConfig};

/// The batches of one pass over the examples of a run.
pub(crate) fn order<'a>(
    task: &Task,
    examples: &'a [Example],
    batch_size: usize,
    seed: u64,
    pass: usize,
) -> Vec<Vec<&'a Example>> {
    let seed = seed.wrapping_mul(1_000_003).wrapping_add(pass as u64);
    mixture::epoch(task, examples, batch_size, seed)
}

/// Puts examples on a device as a batch.
pub(crate) type Arrange = fn(&[&Example], &Model, &Device) -> TrainBatch;

/// How the settings lay the examples of a batch out.
pub(crate) fn arrange(config: &TrainConfig) -> Arrange {
    match config.packing {
        true => pack,
        false => collate,
    }
}
