//! BLEU with up to four words (Papineni et al. 2002), as sacrebleu counts it by default: `13a`
//! tokenisation, case kept, exponential smoothing.

use std::collections::HashMap;

use crate::TaskError;

/// Longest run of words that is compared.
const ORDER: usize = 4;

/// BLEU of a whole set of answers, each against one or more references, as a fraction of one.
///
/// # Errors
/// If answers and references do not pair up, there are none, or an answer has no reference.
pub fn corpus_bleu(answers: &[String], references: &[Vec<String>]) -> Result<f64, TaskError> {
    let unpaired = answers.len() != references.len() || answers.is_empty();
    if unpaired || references.iter().any(Vec::is_empty) {
        let expected = references
            .iter()
            .filter(|references| !references.is_empty())
            .count();
        return Err(TaskError::Unpaired {
            found: answers.len(),
            expected,
        });
    }
    let mut sum = Counts::default();
    for (answer, references) in answers.iter().zip(references) {
        sum.add(&Counts::of(answer, references));
    }
    Ok(sum.score(ORDER))
}

/// BLEU of one answer, for a look at single answers: orders that the answer is too short for are
/// left out (sacrebleu's `effective_order`), so it is no part of the corpus score.
#[must_use]
pub fn sentence_bleu(answer: &str, references: &[String]) -> f64 {
    let counts = Counts::of(answer, references);
    let orders = counts.total.iter().take_while(|&&total| total > 0).count();
    counts.score(orders)
}

/// What BLEU is computed from; sums over answers.
#[derive(Default)]
struct Counts {
    /// Runs of each length that a reference has too.
    correct: [usize; ORDER],
    /// Runs of each length.
    total: [usize; ORDER],
    answer_length: usize,
    reference_length: usize,
}

impl Counts {
    fn of(answer: &str, references: &[String]) -> Self {
        let answer = tokenise(answer);
        let references: Vec<Vec<String>> = references.iter().map(|text| tokenise(text)).collect();
        let mut counts = Self {
            answer_length: answer.len(),
            ..Self::default()
        };
        // The reference closest in length, of two as close the shorter.
        let lengths = references.iter().map(Vec::len);
        counts.reference_length = lengths
            .min_by_key(|&length| (length.abs_diff(answer.len()), length))
            .unwrap_or(0);
        for order in 1..=ORDER {
            let mut most: HashMap<&[String], usize> = HashMap::new();
            for reference in &references {
                for (run, count) in runs(reference, order) {
                    let known = most.entry(run).or_default();
                    *known = count.max(*known);
                }
            }
            for (run, count) in runs(&answer, order) {
                counts.total[order - 1] += count;
                counts.correct[order - 1] += count.min(most.get(run).copied().unwrap_or(0));
            }
        }
        counts
    }

    fn add(&mut self, other: &Self) {
        for order in 0..ORDER {
            self.correct[order] += other.correct[order];
            self.total[order] += other.total[order];
        }
        self.answer_length += other.answer_length;
        self.reference_length += other.reference_length;
    }

    /// Brevity penalty times the geometric mean of the first `orders` precisions. The k-th
    /// precision in a row that is zero counts as `1 / (2^k total)` (NIST smoothing).
    fn score(&self, orders: usize) -> f64 {
        if self.correct.iter().all(|&count| count == 0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let mut sum = 0.0;
        for order in 0..orders {
            let (correct, total) = (self.correct[order] as f64, self.total[order] as f64);
            if total == 0.0 {
                // No answer of the set is this long.
                return 0.0;
            }
            sum += if correct == 0.0 {
                smoothing *= 2.0;
                (1.0 / (smoothing * total)).ln()
            } else {
                (correct / total).ln()
            };
        }
        let (answer, reference) = (self.answer_length as f64, self.reference_length as f64);
        let penalty = if answer < reference {
            (1.0 - reference / answer).exp()
        } else {
            1.0
        };
        penalty * (sum / orders as f64).exp()
    }
}

/// How often each run of `order` words occurs.
fn runs(words: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for run in words.windows(order) {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

/// The `13a` tokenisation of mteval: punctuation apart, except points and commas between digits.
fn tokenise(text: &str) -> Vec<String> {
    let mut text = text
        .trim_end()
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    for (entity, character) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(entity, character);
    }
    let mut apart = String::with_capacity(2 * text.len() + 2);
    for c in format!(" {text} ").chars() {
        if is_symbol(c) {
            apart.extend([' ', c, ' ']);
        } else {
            apart.push(c);
        }
    }
    let point = |c: char| c == '.' || c == ',';
    let digit = |c: char| c.is_ascii_digit();
    let apart = pairs(
        &apart,
        |a, b| !digit(a) && point(b),
        |a, b| format!("{a} {b} "),
    );
    let apart = pairs(
        &apart,
        |a, b| point(a) && !digit(b),
        |a, b| format!(" {a} {b}"),
    );
    let apart = pairs(
        &apart,
        |a, b| digit(a) && b == '-',
        |a, b| format!("{a} {b} "),
    );
    apart.split_whitespace().map(str::to_string).collect()
}

/// ASCII symbols that always stand alone: all but point, comma, hyphen and apostrophe.
fn is_symbol(c: char) -> bool {
    matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/')
}

/// Replaces pairs of neighbours from left to right, as a regular expression of two characters
/// does: a pair that is replaced shares no character with the next.
fn pairs(
    text: &str,
    matches: impl Fn(char, char) -> bool,
    replace: impl Fn(char, char) -> String,
) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.peek() {
            Some(&b) if matches(a, b) => {
                chars.next();
                out.push_str(&replace(a, b));
            }
            _ => out.push(a),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_stands_apart_except_within_numbers() {
        let words = tokenise("It's 3.50, &quot;cheap&quot; (5-10%)... a.b well-known");
        let expected = [
            "It's",
            "3.50",
            ",",
            "\"",
            "cheap",
            "\"",
            "(",
            "5",
            "-",
            "10",
            "%",
            ")",
            ".",
            ".",
            ".",
            "a",
            ".",
            "b",
            "well-known",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_perfect_answer_scores_one() {
        let texts = || vec!["the cat sat on the mat".to_string()];
        assert_eq!(corpus_bleu(&texts(), &[texts()]).unwrap(), 1.0);
        assert_eq!(sentence_bleu("the cat", &["the cat".to_string()]), 1.0);
    }

    #[test]
    fn empty_answers_score_zero() {
        assert_eq!(
            corpus_bleu(&[String::new()], &[vec!["a b".to_string()]]).unwrap(),
            0.0
        );
        assert_eq!(sentence_bleu("", &["a b".to_string()]), 0.0);
    }

    #[test]
    fn an_answer_without_a_reference_is_refused() {
        assert!(corpus_bleu(&["a".to_string()], &[]).is_err());
        assert!(corpus_bleu(&["a".to_string()], &[vec![]]).is_err());
        assert!(corpus_bleu(&[], &[]).is_err());
    }
}
