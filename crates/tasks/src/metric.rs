//! Answers to scores. Every function agrees with a published implementation on random cases
//! (`tests/golden/metrics`): scikit-learn for classes, the SQuAD script and sacrebleu for text.
//!
//! Scores are fractions of one, BLEU included; only [`perplexity`] has another scale.

mod bleu;
mod confusion;
mod text;

use serde::{Deserialize, Serialize};

pub use bleu::{corpus_bleu, sentence_bleu};
pub use confusion::Confusion;
pub use text::{exact_match, token_f1};

/// What a study ranks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of right classes.
    Accuracy,
    /// Mean over classes of the harmonic mean of precision and recall.
    MacroF1,
    /// Matthews correlation, in its form for any number of classes; chance is 0.
    Matthews,
    /// Share of answers equal to the reference but for space around them.
    ExactMatch,
    /// Overlap of words with the reference, as SQuAD counts it.
    TokenF1,
    /// Corpus BLEU with up to four words, as sacrebleu counts it.
    Bleu,
    /// Exponential of the mean loss of a token.
    Perplexity,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Metric; 7] = [
        Metric::Accuracy,
        Metric::MacroF1,
        Metric::Matthews,
        Metric::ExactMatch,
        Metric::TokenF1,
        Metric::Bleu,
        Metric::Perplexity,
    ];

    /// Its name in configurations and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::MacroF1 => "macro_f1",
            Metric::Matthews => "matthews",
            Metric::ExactMatch => "exact_match",
            Metric::TokenF1 => "token_f1",
            Metric::Bleu => "bleu",
            Metric::Perplexity => "perplexity",
        }
    }

    /// Whether it scores classes, not texts.
    #[must_use]
    pub fn is_of_classes(self) -> bool {
        matches!(self, Metric::Accuracy | Metric::MacroF1 | Metric::Matthews)
    }

    /// Whether a larger value is better.
    #[must_use]
    pub fn higher_is_better(self) -> bool {
        self != Metric::Perplexity
    }
}

/// The largest loss whose perplexity is told: that of larger ones is no number, or has no mean.
pub const MOST_LOSS: f64 = 300.0;

/// Perplexity from the mean loss of a token, in nats; that of [`MOST_LOSS`] where it is larger.
#[must_use]
pub fn perplexity(mean_loss: f64) -> f64 {
    match mean_loss > MOST_LOSS {
        true => MOST_LOSS.exp(),
        false => mean_loss.exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_configuration() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }

    #[test]
    fn a_uniform_guess_has_the_perplexity_of_its_choices() {
        assert!((perplexity(50257f64.ln()) - 50257.0).abs() < 1e-6);
    }

    #[test]
    fn a_perplexity_is_a_number_with_a_mean_and_a_spread_where_the_loss_is_one() {
        let largest = perplexity(1e6);
        assert!((largest * largest).is_finite());
        assert_eq!(largest, perplexity(MOST_LOSS));
        assert!(perplexity(f64::NAN).is_nan());
    }
}
