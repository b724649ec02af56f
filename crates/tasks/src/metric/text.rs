//! Scores of one answer against one reference.

use std::collections::HashMap;

/// Whether an answer equals its reference but for space around them.
///
/// Of a greedily decoded answer the same can be told without decoding it: it is the reference,
/// token for token, exactly if the reference's own tokens are each the most likely one after the
/// tokens before them, which one forward pass over prompt and reference shows.
#[must_use]
pub fn exact_match(answer: &str, reference: &str) -> bool {
    answer.trim() == reference.trim()
}

/// Overlap of words as the SQuAD evaluation script (version 2) counts it: lower case, punctuation
/// and articles left out, then the harmonic mean of precision and recall. Two empty texts agree.
#[must_use]
pub fn token_f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (words(answer), words(reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &reference {
        *left.entry(word).or_default() += 1;
    }
    let mut shared = 0;
    for word in &answer {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    if shared == 0 {
        return 0.0;
    }
    let precision = f64::from(shared) / answer.len() as f64;
    let recall = f64::from(shared) / reference.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// The words that count. Punctuation goes first, so that `the.` is an article too.
fn words(text: &str) -> Vec<String> {
    let plain: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    // The script replaces an article by a space wherever it stands between word boundaries.
    let spaced: Vec<&str> = runs(&plain)
        .into_iter()
        .map(|run| {
            if matches!(run, "a" | "an" | "the") {
                " "
            } else {
                run
            }
        })
        .collect();
    spaced
        .concat()
        .split_whitespace()
        .map(str::to_string)
        .collect()
}

/// Cuts a text into runs that are all word characters or all others.
fn runs(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut last = None;
    for (index, c) in text.char_indices() {
        if last.is_some_and(|last| is_word(last) != is_word(c)) {
            out.push(&text[start..index]);
            start = index;
        }
        last = Some(c);
    }
    out.push(&text[start..]);
    out
}

/// What a regular expression takes for a word character.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_space_around_an_answer_is_forgiven() {
        assert!(exact_match(" I recommend it.\n", "I recommend it."));
        assert!(!exact_match("I recommend it", "I recommend it."));
        assert!(!exact_match("i recommend it.", "I recommend it."));
    }

    #[test]
    fn a_repeated_word_counts_as_often_as_the_reference_has_it() {
        assert_eq!(token_f1("cat cat cat", "cat dog"), 0.4);
    }

    #[test]
    fn articles_and_punctuation_do_not_count() {
        assert_eq!(token_f1("The cat!", "a Cat"), 1.0);
        assert_eq!(token_f1("the", "an"), 1.0);
        assert_eq!(token_f1("", "cat"), 0.0);
    }
}
