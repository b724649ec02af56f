//! Batches of examples of similar length, so that little of the work is padding.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use models::{Batch, Model, Side};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::data::{Example, Target};
use crate::layer_drop::Drops;

/// Batches are drawn from chunks of this many batches, sorted by length within.
const CHUNK: usize = 32;

/// The examples of one epoch in batches: shuffled, sorted by length within chunks, and the batches
/// shuffled again. The same seed gives the same batches.
pub fn epoch(examples: &[Example], batch_size: usize, seed: u64) -> Vec<Vec<&Example>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<&Example> = examples.iter().collect();
    order.shuffle(&mut rng);
    for chunk in order.chunks_mut(batch_size * CHUNK) {
        chunk.sort_by_key(|example| example.ids.len());
    }
    let mut batches: Vec<_> = order.chunks(batch_size).map(<[_]>::to_vec).collect();
    batches.shuffle(&mut rng);
    batches
}

/// Indices of examples in batches of similar length, longest first.
pub fn by_length(examples: &[Example], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(examples[*index].ids.len()));
    order.chunks(batch_size).map(<[_]>::to_vec).collect()
}

/// A batch on a device, with what is to be learnt of it.
#[derive(Clone, Debug)]
pub struct TrainBatch {
    /// Token ids.
    pub batch: Batch,
    /// What is to be learnt.
    pub targets: Targets,
    /// Tokens that are no padding.
    pub tokens: usize,
    /// What of the method takes no part.
    pub drops: Drops,
}

/// What is to be learnt of a batch.
#[derive(Clone, Debug)]
pub enum Targets {
    /// Next tokens.
    Tokens {
        /// Flat positions whose next token counts, `[n]`.
        places: Tensor<1, Int>,
        /// The tokens that follow them, `[n]`.
        next: Tensor<1, Int>,
        /// How many they are.
        count: usize,
    },
    /// Classes.
    Classes {
        /// The output that is each row's class, `[batch]`.
        outputs: Tensor<1, Int>,
        /// The outputs that are of other tasks than a row's, `[batch, outputs]`; none where all are
        /// of one task.
        others: Option<Tensor<2, Bool>>,
    },
}

/// Puts examples on a device as a training batch, padded to the longest.
///
/// # Panics
/// If the examples mix completions and classes, or there is none.
pub fn collate(examples: &[&Example], model: &Model, device: &Device) -> TrainBatch {
    let rows: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
    let length = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let tasks: Vec<usize> = examples.iter().map(|example| example.task).collect();
    let batch = Batch::new(&rows, 0, Side::Right, model.positions(), device).of_tasks(&tasks);
    let prompts: Vec<usize> = examples.iter().map(|e| e.prompt().len()).collect();
    let targets = targets(examples, |row| row * length, model, device);
    TrainBatch {
        batch: match targets {
            Targets::Tokens { .. } => batch.with_prompts(&prompts),
            Targets::Classes { .. } => batch,
        },
        targets,
        tokens: rows.iter().map(|row| row.len()).sum(),
        drops: Drops::default(),
    }
}

/// Puts completions on a device as a training batch of one row without padding, in which no text
/// sees another: what is learnt is the same.
///
/// # Panics
/// If there is no example.
pub fn pack(examples: &[&Example], model: &Model, device: &Device) -> TrainBatch {
    let rows: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
    let start = |row: usize| rows[..row].iter().map(|row| row.len()).sum();
    TrainBatch {
        batch: Batch::packed(&rows, model.positions(), device),
        targets: targets(examples, start, model, device),
        tokens: start(rows.len()),
        drops: Drops::default(),
    }
}

/// What is to be learnt of examples whose first tokens have these flat positions.
fn targets(
    examples: &[&Example],
    start: impl Fn(usize) -> usize,
    model: &Model,
    device: &Device,
) -> Targets {
    let ints = |values: Vec<i64>| {
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), device)
    };
    let (mut places, mut next, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for (row, example) in examples.iter().enumerate() {
        let start = start(row);
        let mut learn = |part: std::ops::Range<usize>| {
            for index in part.start.max(1)..part.end {
                places.push((start + index - 1) as i64);
                next.push(i64::from(example.ids[index]));
            }
        };
        match &example.target {
            Target::Class { output, .. } => classes.push(*output as i64),
            Target::Completion(start) => learn(*start..example.ids.len()),
            Target::Parts { learned, .. } => learned.iter().cloned().for_each(learn),
        }
    }
    if classes.is_empty() {
        let count = places.len();
        Targets::Tokens {
            places: ints(places),
            next: ints(next),
            count,
        }
    } else {
        assert_eq!(
            classes.len(),
            examples.len(),
            "a batch holds one kind of target"
        );
        Targets::Classes {
            outputs: ints(classes),
            others: others(examples, model.classes().unwrap_or(0), device),
        }
    }
}

/// The outputs of a classifier that are of other tasks than that of each example.
fn others(examples: &[&Example], outputs: usize, device: &Device) -> Option<Tensor<2, Bool>> {
    let is_other = |example: &&Example| {
        let of = match &example.target {
            Target::Class { of, .. } => of.clone(),
            Target::Completion(_) | Target::Parts { .. } => 0..outputs,
        };
        (0..outputs).map(move |output| !of.contains(&output))
    };
    let mask: Vec<bool> = examples.iter().flat_map(is_other).collect();
    let several = mask.contains(&true);
    several.then(|| Tensor::from_data(TensorData::new(mask, [examples.len(), outputs]), device))
}

#[cfg(test)]
mod packing_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Example> {
        let example = |i: usize| Example {
            task: 0,
            ids: vec![1; 1 + (i * 7) % 23],
            target: Target::Class {
                output: 0,
                of: 0..2,
            },
            input: i.to_string(),
            expected: String::new(),
        };
        (0..100).map(example).collect()
    }

    #[test]
    fn only_the_parts_that_are_learned_have_targets() {
        let device = Device::flex();
        let mut init = peft_core::Init::new(0, &device);
        let shape = models::Gpt2Config::new(64, 16, 32, 2, 2);
        let model = Model::random_gpt2(shape, &mut init).unwrap();
        let example = |target| Example {
            task: 0,
            ids: (10..18).collect(),
            target,
            input: String::new(),
            expected: String::new(),
        };
        let chat = example(Target::Parts {
            learned: vec![2..4, 7..8],
            answer: 7,
        });
        let plain = example(Target::Completion(6));
        let Targets::Tokens {
            places,
            next,
            count,
        } = collate(&[&chat, &plain], &model, &device).targets
        else {
            panic!("tokens are to be learnt")
        };
        let ints = |tensor: Tensor<1, Int>| -> Vec<i64> {
            tensor.into_data().convert::<i64>().try_to_vec().unwrap()
        };
        assert_eq!(count, 5);
        assert_eq!(
            ints(places),
            [1, 2, 6, 8 + 5, 8 + 6],
            "the place before each"
        );
        assert_eq!(ints(next), [12, 13, 17, 16, 17]);
    }

    #[test]
    fn a_batch_tells_prompts_from_completions_and_says_nothing_of_classes() {
        let device = Device::flex();
        let mut init = peft_core::Init::new(0, &device);
        let shape = models::Gpt2Config::new(64, 16, 32, 2, 2);
        let model = Model::random_gpt2(shape, &mut init).unwrap();
        let example = |ids, target| Example {
            task: 0,
            ids,
            target,
            input: String::new(),
            expected: String::new(),
        };
        let long = example(vec![1, 2, 3, 4], Target::Completion(3));
        let short = example(vec![1, 2], Target::Completion(1));
        let batch = collate(&[&long, &short], &model, &device).batch;
        let prompts: Vec<f32> = batch.prompt.unwrap().into_data().try_to_vec().unwrap();
        assert_eq!(prompts, [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        let class = example(
            vec![1, 2],
            Target::Class {
                output: 1,
                of: 0..2,
            },
        );
        assert!(collate(&[&class], &model, &device).batch.prompt.is_none());
    }

    #[test]
    fn an_epoch_holds_every_example_once() {
        let examples = examples();
        let mut seen: Vec<_> = epoch(&examples, 8, 3)
            .concat()
            .iter()
            .map(|e| &e.input)
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn the_seed_decides_the_order() {
        let examples = examples();
        let order = |seed| -> Vec<String> {
            epoch(&examples, 8, seed)
                .concat()
                .iter()
                .map(|e| e.input.clone())
                .collect()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn sorting_by_length_leaves_less_padding_than_random_batches() {
        let examples = examples();
        let padded = |batches: &[Vec<&Example>]| -> usize {
            let longest = |b: &Vec<&Example>| b.iter().map(|e| e.ids.len()).max().unwrap();
            batches.iter().map(|b| b.len() * longest(b)).sum()
        };
        let plain: Vec<&Example> = examples.iter().collect();
        let plain: Vec<Vec<&Example>> = plain.chunks(8).map(<[_]>::to_vec).collect();
        assert!(padded(&epoch(&examples, 8, 1)) < padded(&plain));
    }
}
