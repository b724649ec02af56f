//! Train, dev and test, kept apart.

use std::collections::HashSet;

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::read::Table;

/// What every kind of example has.
pub trait Example {
    /// What the model is given, as text: two examples of one input ask the same question.
    fn input(&self) -> &str;
}

/// The three parts of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Splits<T> {
    /// To learn from.
    pub train: Vec<T>,
    /// To choose settings by.
    pub dev: Vec<T>,
    /// To report on.
    pub test: Vec<T>,
}

/// Inputs that stand in two parts: each makes a score look better than it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicates {
    /// Examples of dev whose input is also in train.
    pub dev_in_train: usize,
    /// Examples of test whose input is also in train.
    pub test_in_train: usize,
    /// Examples of test whose input is also in dev.
    pub test_in_dev: usize,
}

impl Duplicates {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl<T: Example> Splits<T> {
    /// Counts the inputs that stand in two parts. Nothing is dropped: published splits have such
    /// pairs, and a score on another set would be no published score.
    #[must_use]
    pub fn duplicates(&self) -> Duplicates {
        let train: HashSet<&str> = self.train.iter().map(T::input).collect();
        let dev: HashSet<&str> = self.dev.iter().map(T::input).collect();
        let within = |part: &[T], known: &HashSet<&str>| {
            part.iter()
                .filter(|example| known.contains(example.input()))
                .count()
        };
        Duplicates {
            dev_in_train: within(&self.dev, &train),
            test_in_train: within(&self.test, &train),
            test_in_dev: within(&self.test, &dev),
        }
    }
}

/// At most `limit` of the items, drawn by the seed, in their old order.
///
/// The draw depends on the seed and on the numbers alone, so a part is the same whatever is drawn
/// from another.
#[must_use]
pub fn subsample<T>(items: Vec<T>, limit: Option<usize>, seed: u64) -> Vec<T> {
    let Some(limit) = limit.filter(|&limit| limit < items.len()) else {
        return items;
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kept: HashSet<usize> = index::sample(&mut rng, items.len(), limit)
        .into_iter()
        .collect();
    let numbered = items.into_iter().enumerate();
    numbered
        .filter(|(place, _)| kept.contains(place))
        .map(|(_, item)| item)
        .collect()
}

/// What a part was made of, for the record of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// SHA-256 of the file, or of the generated text, in hex.
    pub sha256: String,
    /// Number of examples used.
    pub examples: usize,
}

impl Fingerprint {
    /// Of a file of which so many examples are used.
    #[must_use]
    pub fn of_table(table: &Table, examples: usize) -> Self {
        Self {
            sha256: table.sha256.clone(),
            examples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Example for &str {
        fn input(&self) -> &str {
            self
        }
    }

    #[test]
    fn inputs_in_two_parts_are_counted_and_kept() {
        let splits = Splits {
            train: vec!["a", "b", "b"],
            dev: vec!["b", "c", "b"],
            test: vec!["a", "c", "d", "A"],
        };
        let expected = Duplicates {
            dev_in_train: 2,
            test_in_train: 1,
            test_in_dev: 1,
        };
        assert_eq!(splits.duplicates(), expected);
        assert!(!expected.is_empty());
        assert_eq!(splits.dev.len(), 3);
    }

    #[test]
    fn parts_without_a_common_input_give_no_warning() {
        let splits = Splits {
            train: vec!["a", "a"],
            dev: vec!["b"],
            test: vec![],
        };
        assert!(splits.duplicates().is_empty());
    }

    #[test]
    fn a_draw_keeps_the_order_and_is_that_of_its_seed() {
        let draw = |seed| subsample((0..1000).collect(), Some(50), seed);
        let one = draw(1);
        assert_eq!(one.len(), 50);
        assert!(one.is_sorted());
        assert_eq!(one, draw(1));
        assert_ne!(one, draw(2));
        assert!(one.iter().any(|&item| item > 500), "not merely the first");
    }

    #[test]
    fn every_item_is_as_likely_to_be_drawn() {
        let mut counts = [0; 10];
        for seed in 0..2000 {
            subsample((0..10).collect(), Some(3), seed)
                .into_iter()
                .for_each(|i: usize| counts[i] += 1);
        }
        // Expected 600 each, with a standard deviation of about 20.
        assert!(
            counts.iter().all(|count| (500..700).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_limit_that_is_not_reached_changes_nothing() {
        assert_eq!(subsample(vec![3, 1, 2], Some(3), 1), [3, 1, 2]);
        assert_eq!(subsample(vec![3, 1, 2], None, 1), [3, 1, 2]);
        assert!(subsample(vec![3, 1, 2], Some(0), 1).is_empty());
    }
}
