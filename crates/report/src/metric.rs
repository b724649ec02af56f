//! The metric a study ranks by, and how its values are shown.

/// A metric with its direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in the records: `accuracy`.
    pub name: String,
    /// Whether a larger value is better.
    pub higher_is_better: bool,
}

impl Metric {
    /// Whether values are fractions of one, shown as percent; losses and perplexities are not.
    #[must_use]
    pub fn is_fraction(&self) -> bool {
        let name = self.name.to_lowercase();
        !["loss", "perplexity", "ppl", "nll", "bits"]
            .iter()
            .any(|word| name.contains(word))
    }

    /// Whether `a` is strictly better than `b`.
    #[must_use]
    pub fn better(&self, a: f64, b: f64) -> bool {
        if self.higher_is_better { a > b } else { a < b }
    }

    /// The value as it is plotted and tabulated: percent for a fraction.
    #[must_use]
    pub fn scaled(&self, value: f64) -> f64 {
        if self.is_fraction() {
            value * 100.0
        } else {
            value
        }
    }

    /// The value moved to where the metric can be: an interval by Student's t knows no bounds.
    #[must_use]
    pub fn within(&self, value: f64) -> f64 {
        let from_zero = ["accuracy", "exact_match", "bleu", "f1"];
        match self.is_fraction() && from_zero.iter().any(|name| self.name.contains(name)) {
            true => value.clamp(0.0, 1.0),
            false => value,
        }
    }

    /// The number alone, in the unit of [`Metric::scaled`].
    #[must_use]
    pub fn number(&self, value: f64) -> String {
        let digits = if self.is_fraction() { 2 } else { 3 };
        format!("{:.digits$}", self.scaled(value))
    }

    /// Readable name: `exact_match` becomes `exact match`, `f1` becomes `F1`.
    #[must_use]
    pub fn title(&self) -> String {
        match self.name.as_str() {
            "f1" | "bleu" | "nist" | "meteor" | "chrf" | "mcc" => self.name.to_uppercase(),
            "rouge_l" => "ROUGE-L".to_owned(),
            name => name.replace(['_', '-'], " "),
        }
    }

    /// Title of an axis or column with unit and direction: `Test accuracy (%)`.
    #[must_use]
    pub fn axis(&self, split: &str) -> String {
        let unit = if self.is_fraction() { " (%)" } else { "" };
        let direction = if self.higher_is_better {
            ""
        } else {
            ", lower is better"
        };
        format!("{split} {}{unit}{direction}", self.title())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(name: &str, higher_is_better: bool) -> Metric {
        Metric {
            name: name.to_owned(),
            higher_is_better,
        }
    }

    #[test]
    fn fractions_are_shown_as_percent_and_losses_as_they_are() {
        assert_eq!(metric("accuracy", true).number(0.91284), "91.28");
        assert_eq!(
            metric("exact_match", true).axis("Test"),
            "Test exact match (%)"
        );
        assert_eq!(metric("perplexity", false).number(21.5), "21.500");
        assert_eq!(
            metric("dev_loss", false).axis("Test"),
            "Test dev loss, lower is better"
        );
    }

    #[test]
    fn the_direction_decides_what_is_better() {
        assert!(metric("accuracy", true).better(0.9, 0.8));
        assert!(metric("loss", false).better(0.8, 0.9));
        assert!(!metric("loss", false).better(0.8, 0.8));
    }

    #[test]
    fn intervals_end_where_the_metric_does() {
        assert_eq!(metric("accuracy", true).within(1.02), 1.0);
        assert_eq!(metric("exact_match", true).within(-0.1), 0.0);
        assert_eq!(metric("matthews", true).within(-0.1), -0.1);
        assert_eq!(metric("perplexity", false).within(3.0), 3.0);
    }
}
