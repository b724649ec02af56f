//! Training on batches given as tensors, for checking step by step against another program.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use models::{Batch, Model};
use peft_core::{Adapted, Init, Method};

use crate::batching::{Targets, TrainBatch};
use crate::groups::Groups;
use crate::schedule::{Decay, Schedule};
use crate::stepper::Stepper;
use crate::token_file::TokenFile;

/// The label of a token that carries no loss.
const IGNORED: i64 = -100;

/// Reads the batches of a file: `input_ids` and (optional) `attention_mask`
/// `[steps, batch, sequence]`, and `labels`, of the same shape for a language model (-100 where no
/// loss is) and `[steps, batch]` for a classifier.
///
/// # Errors
/// If a tensor is missing, of another shape, or holds what the model does not know.
pub fn read(file: &Path, model: &Adapted<Model>, device: &Device) -> Result<Vec<TrainBatch>> {
    let host = &model.host;
    let positions = host.max_length().saturating_sub(model.position_offset);
    let mut tokens = TokenFile::read(file, &["steps", "batch", "sequence"], host, positions)?;
    let [steps, rows, length] = tokens.shape[..] else {
        unreachable!("three axes were asked for")
    };
    let wanted: &[usize] = match host.is_causal() {
        true => &[steps, rows, length],
        false => &[steps, rows],
    };
    let labels = tokens.integers("labels", &[wanted])?;
    let per_step = labels.len() / steps;
    let batch = |step: usize| {
        let part = step * rows * length..(step + 1) * rows * length;
        let (ids, mask) = (
            tokens.ids[part.clone()].to_vec(),
            tokens.mask[part].to_vec(),
        );
        let labels = &labels[step * per_step..(step + 1) * per_step];
        let batch = Batch::from_parts(ids, mask.clone(), rows, host.positions(), device);
        let (batch, targets) = match host.is_causal() {
            true => (
                batch.with_prompts(&prompts(labels, length)),
                next_tokens(labels, length, host.vocab_size(), device)?,
            ),
            false => (batch, classes(labels, host.classes().unwrap_or(0), device)?),
        };
        let real = mask.iter().filter(|real| **real != 0.0).count();
        Ok(TrainBatch {
            batch,
            targets,
            tokens: real,
            drops: Default::default(),
        })
    };
    (0..steps).map(batch).collect()
}

fn ints(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// How many tokens of every row stand before the first whose label counts.
fn prompts(labels: &[i64], length: usize) -> Vec<usize> {
    let given = |row: &[i64]| row.iter().position(|label| *label != IGNORED);
    let rows = labels.chunks(length);
    rows.map(|row| given(row).unwrap_or(length)).collect()
}

/// The tokens that follow each place, where their label counts.
fn next_tokens(labels: &[i64], length: usize, vocab: usize, device: &Device) -> Result<Targets> {
    let (mut places, mut next) = (Vec::new(), Vec::new());
    for (place, label) in labels.iter().enumerate() {
        let starts_a_row = place.is_multiple_of(length);
        if starts_a_row || *label == IGNORED {
            continue;
        }
        ensure!(
            (0..vocab as i64).contains(label),
            "`labels` holds {label}, expected {IGNORED} or ids from 0 to below {vocab}"
        );
        places.push(place as i64 - 1);
        next.push(*label);
    }
    ensure!(
        !places.is_empty(),
        "a step's `labels` leave no token with loss"
    );
    let count = places.len();
    Ok(Targets::Tokens {
        places: ints(places, device),
        next: ints(next, device),
        count,
    })
}

fn classes(labels: &[i64], count: usize, device: &Device) -> Result<Targets> {
    if let Some(label) = labels.iter().find(|l| !(0..count as i64).contains(*l)) {
        bail!("`labels` holds {label}, expected classes from 0 to below {count}");
    }
    Ok(Targets::Classes {
        outputs: ints(labels.to_vec(), device),
        others: None,
    })
}

/// How the steps on given batches are taken.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// Constant learning rate, times the method's own factors.
    pub rate: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Whether layers are computed again in the backward pass.
    pub checkpointing: bool,
}

/// Takes one AdamW step a batch; gives the trained model and the loss before each step.
///
/// # Errors
/// If the method's configuration does not go with so many steps.
pub fn train(
    model: Adapted<Model>,
    method: &dyn Method,
    batches: Vec<TrainBatch>,
    steps: Steps,
) -> Result<(Adapted<Model>, Vec<f32>)> {
    let schedule = Schedule::new(Decay::Constant, steps.rate, 0, batches.len());
    let device = model.devices().first().cloned().unwrap_or_default();
    let regulator = method.regulator(batches.len(), Init::new(0, &device))?;
    let groups = Groups::of_method(&model, method, steps.weight_decay);
    let stepper = Stepper::new(model, groups, schedule, 0.0).regulated(regulator);
    let mut stepper = stepper.with_checkpointing(steps.checkpointing);
    let losses = batches
        .into_iter()
        .map(|batch| stepper.step(vec![batch]))
        .collect();
    Ok((stepper.into_model(), losses))
}
