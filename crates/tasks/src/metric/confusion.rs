//! Scores of a classification, all from one table of counts.

use crate::TaskError;

/// How often each class was predicted for each true class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// Row by true class, column by predicted class.
    counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Counts the pairs of true and predicted class.
    ///
    /// # Errors
    /// If the two do not pair up, there is no pair, or a class is not below `classes`.
    pub fn new(truth: &[usize], predicted: &[usize], classes: usize) -> Result<Self, TaskError> {
        if truth.len() != predicted.len() || truth.is_empty() {
            return Err(TaskError::Unpaired {
                found: predicted.len(),
                expected: truth.len(),
            });
        }
        let mut counts = vec![vec![0; classes]; classes];
        for (&truth, &predicted) in truth.iter().zip(predicted) {
            let found = truth.max(predicted);
            if found >= classes {
                return Err(TaskError::UnknownClass { found, classes });
            }
            counts[truth][predicted] += 1;
        }
        Ok(Self { counts })
    }

    /// Share of pairs on the diagonal.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        let (right, all) = (self.right(), self.all());
        right / all
    }

    /// Mean F1 over the classes that are true or predicted somewhere; a class that is never right
    /// counts 0. As scikit-learn's `f1_score(average="macro", zero_division=0)`.
    #[must_use]
    pub fn macro_f1(&self) -> f64 {
        let truth = self.truth();
        let predicted = self.predicted();
        let scores: Vec<f64> = (0..self.counts.len())
            .filter(|&class| truth[class] + predicted[class] > 0.0)
            .map(|class| 2.0 * self.counts[class][class] as f64 / (truth[class] + predicted[class]))
            .collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    }

    /// Matthews correlation for any number of classes (Gorodkin 2004, R_K); 0 where it is not
    /// defined, that is where all are of one class or all are predicted as one.
    #[must_use]
    pub fn matthews(&self) -> f64 {
        let (truth, predicted) = (self.truth(), self.predicted());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let all = self.all();
        let covariance = self.right() * all - dot(&truth, &predicted);
        let spread = (all * all - dot(&truth, &truth)) * (all * all - dot(&predicted, &predicted));
        if spread == 0.0 {
            0.0
        } else {
            covariance / spread.sqrt()
        }
    }

    fn right(&self) -> f64 {
        self.counts
            .iter()
            .enumerate()
            .map(|(class, row)| row[class])
            .sum::<u64>() as f64
    }

    fn all(&self) -> f64 {
        self.counts.iter().flatten().sum::<u64>() as f64
    }

    fn truth(&self) -> Vec<f64> {
        self.counts
            .iter()
            .map(|row| row.iter().sum::<u64>() as f64)
            .collect()
    }

    fn predicted(&self) -> Vec<f64> {
        let column = |class| self.counts.iter().map(|row| row[class]).sum::<u64>() as f64;
        (0..self.counts.len()).map(column).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_guess_has_no_correlation() {
        let confusion = Confusion::new(&[0, 0, 0, 1], &[0, 0, 0, 0], 2).unwrap();
        assert_eq!(confusion.accuracy(), 0.75);
        assert_eq!(confusion.matthews(), 0.0);
    }

    #[test]
    fn what_does_not_pair_up_is_refused() {
        let message = Confusion::new(&[0, 1], &[0], 2).unwrap_err().to_string();
        assert!(
            message.starts_with("1 predictions for 2 references"),
            "{message}"
        );
        assert!(Confusion::new(&[], &[], 2).is_err());
    }

    #[test]
    fn a_class_out_of_range_is_refused() {
        let message = Confusion::new(&[0, 1], &[0, 2], 2).unwrap_err().to_string();
        assert_eq!(
            message,
            "class 2 does not exist; there are 2 classes, counted from 0"
        );
    }
}
