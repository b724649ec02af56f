//! Several tasks at once: batches of one task each, and scores of each task.

use std::collections::BTreeMap;

use anyhow::Result;
use rand::distr::{Distribution, weighted::WeightedIndex};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use report::record::Prediction;

use crate::batching;
use crate::data::Example;
use crate::evaluate::{Evaluator, Scores};
use crate::study::{Mixture, Task};

/// The batches of one epoch of a task or a mixture. The same seed gives the same batches.
pub fn epoch<'a>(
    task: &Task,
    examples: &'a [Example],
    batch_size: usize,
    seed: u64,
) -> Vec<Vec<&'a Example>> {
    match task {
        Task::Mixture(mixture) => mixed(mixture, examples, batch_size, seed),
        Task::Completion { .. } | Task::Classification { .. } => {
            batching::epoch(examples, batch_size, seed)
        }
    }
}

/// As many batches as all examples make, each of a task drawn by its share. A task's own batches
/// hold every example once before one comes again.
fn mixed<'a>(
    mixture: &Mixture,
    examples: &'a [Example],
    batch_size: usize,
    seed: u64,
) -> Vec<Vec<&'a Example>> {
    let tasks: Vec<&[Example]> = by_task(examples).collect();
    // Of the largest, so that no temperature makes a share too large for a number.
    let most = tasks.iter().map(|task| task.len()).max().unwrap_or(1) as f64;
    let share = |task: &&[Example]| (task.len() as f64 / most).powf(1.0 / mixture.temperature);
    let Ok(shares) = WeightedIndex::new(tasks.iter().map(share)) else {
        return Vec::new(); // No examples, no batches.
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut waiting = vec![Vec::new(); tasks.len()];
    let count = examples.len().div_ceil(batch_size);
    (0..count)
        .map(|_| {
            let task = shares.sample(&mut rng);
            if waiting[task].is_empty() {
                waiting[task] = batching::epoch(tasks[task], batch_size, rng.random());
            }
            waiting[task].pop().expect("a task has batches")
        })
        .collect()
}

/// The examples task by task; a split holds them in the order of their tasks.
fn by_task(examples: &[Example]) -> impl Iterator<Item = &[Example]> {
    examples.chunk_by(|a, b| a.task == b.task)
}

impl Evaluator<'_> {
    /// Scores of every task of a mixture, such as `exact_match/NAME`, and their means over the
    /// tasks, such as `exact_match`. The examples' own scores are weighted so that their mean is the
    /// mean over the tasks, by which the study ranks.
    pub(crate) fn each(
        &self,
        mixture: &Mixture,
        examples: &[Example],
        score: impl Fn(&Evaluator<'_>, &[Example]) -> Result<Scores>,
    ) -> Result<Scores> {
        let tasks = mixture.numbered();
        let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut values = BTreeMap::new();
        let mut predictions = Vec::new();
        let present = by_task(examples).count();
        for part in by_task(examples) {
            let (name, task) = tasks[part[0].task];
            let scores = score(&self.of(task), part)?;
            for (metric, value) in scores.values {
                values.insert(format!("{metric}/{name}"), value);
                all.entry(metric).or_default().push(value);
            }
            let weight = examples.len() as f64 / (present * part.len()) as f64;
            let weighted = scores.predictions.into_iter().map(|prediction| Prediction {
                score: prediction.score * weight,
                ..prediction
            });
            predictions.extend(weighted);
        }
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let means = all.into_iter().map(|(name, values)| (name, mean(values)));
        values.extend(means);
        Ok(Scores {
            values,
            predictions,
        })
    }

    /// Answers of every task of a mixture, in the order of the examples.
    pub(crate) fn answers_each(
        &self,
        mixture: &Mixture,
        examples: &[Example],
        answer: impl Fn(&Evaluator<'_>, &[Example]) -> Vec<String>,
    ) -> Vec<String> {
        let tasks = mixture.numbered();
        by_task(examples)
            .flat_map(|part| answer(&self.of(tasks[part[0].task].1), part))
            .collect()
    }

    fn of<'a>(&'a self, task: &'a Task) -> Evaluator<'a> {
        Evaluator {
            task,
            data: self.data,
            tokenizer: self.tokenizer,
            batch_size: self.batch_size,
            device: self.device.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Target;

    /// Tasks of so many examples each, of various lengths.
    fn examples(sizes: &[usize]) -> Vec<Example> {
        let example = |task: usize, i: usize| Example {
            task,
            ids: vec![1; 1 + (i * 7) % 23],
            target: Target::Completion(1),
            input: format!("{task}/{i}"),
            expected: String::new(),
        };
        let tasks = sizes.iter().enumerate();
        tasks
            .flat_map(|(task, size)| (0..*size).map(move |i| example(task, i)))
            .collect()
    }

    fn task(temperature: f64) -> Task {
        Task::Mixture(Mixture {
            tasks: BTreeMap::new(),
            temperature,
        })
    }

    #[test]
    fn tasks_are_drawn_in_proportion_to_their_size_to_the_power_of_one_over_the_temperature() {
        let sizes = [640, 160, 40];
        let examples = examples(&sizes);
        for temperature in [1.0, 2.0, 1e6] {
            let mut drawn = [0usize; 3];
            for seed in 0..40 {
                for batch in epoch(&task(temperature), &examples, 4, seed) {
                    drawn[batch[0].task] += 1;
                }
            }
            let all: usize = drawn.iter().sum();
            assert_eq!(all, 40 * 840 / 4, "as many batches as the examples make");
            let shares = sizes.map(|size| (size as f64).powf(1.0 / temperature));
            for (count, share) in drawn.iter().zip(shares) {
                let (found, expected) = (
                    *count as f64 / all as f64,
                    share / shares.iter().sum::<f64>(),
                );
                assert!(
                    (found - expected).abs() < 0.02,
                    "{temperature}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_batch_is_of_one_task_and_a_task_repeats_nothing_before_all_was_seen() {
        let examples = examples(&[40, 10]);
        let batches = epoch(&task(1e6), &examples, 5, 3);
        assert!(
            batches
                .iter()
                .all(|b| b.iter().all(|e| e.task == b[0].task))
        );
        for (number, size) in [(0, 40), (1, 10)] {
            let of_the_task = batches.iter().filter(|batch| batch[0].task == number);
            let seen: Vec<&str> = of_the_task.flatten().map(|e| e.input.as_str()).collect();
            for round in seen.chunks(size) {
                let different: std::collections::HashSet<_> = round.iter().collect();
                assert_eq!(different.len(), round.len(), "task {number}");
            }
        }
        let small = batches.iter().filter(|batch| batch[0].task == 1).count();
        assert!(small > 2, "the small task comes again: {small} batches");
    }

    #[test]
    fn the_seed_decides_the_batches_of_a_mixture() {
        let examples = examples(&[40, 10]);
        let order = |seed| -> Vec<String> {
            let batches = epoch(&task(2.0), &examples, 5, seed);
            batches.concat().iter().map(|e| e.input.clone()).collect()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn a_task_of_its_own_has_the_batches_it_always_had() {
        let examples = examples(&[40]);
        let alone: Task = serde_json::from_value(serde_json::json!({
            "kind": "completion", "data": {"scenario": 1}, "max_length": 8,
            "max_new_tokens": 1, "metric": "exact_match"
        }))
        .unwrap();
        let inputs = |batches: Vec<Vec<&Example>>| -> Vec<Vec<String>> {
            let inputs = |batch: &Vec<&Example>| batch.iter().map(|e| e.input.clone()).collect();
            batches.iter().map(inputs).collect()
        };
        assert_eq!(
            inputs(epoch(&alone, &examples, 8, 5)),
            inputs(batching::epoch(&examples, 8, 5))
        );
    }

    #[test]
    fn a_mixture_without_examples_has_no_batches() {
        assert!(epoch(&task(1.0), &[], 4, 1).is_empty());
    }
}
