//! Examples brought to their length: the prompt gives way before the completion does.

use std::ops::Range;

use super::LmExample;

/// An example of any length.
pub(super) struct Draft {
    pub(super) ids: Vec<u32>,
    /// The parts that are learned, in order.
    pub(super) loss: Vec<Range<usize>>,
    /// Tokens in front that are never cut: what a model expects at the start of every text.
    pub(super) keep: usize,
    /// Where the (last) completion starts; 0 if there is nothing to predict it from.
    pub(super) answer: usize,
    pub(super) prompt_text: String,
    pub(super) completion_text: String,
}

/// What became of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing was lost.
    Whole,
    /// The prompt lost its start.
    PromptCut,
    /// The completion of so many tokens lost its end, and the prompt all that may be cut.
    CompletionCut { found: usize },
    /// The tokens that are always kept leave no room for the completion.
    NothingLeft { kept: usize },
}

impl Draft {
    /// At most `most` tokens of the draft.
    pub(super) fn fit(mut self, most: usize) -> (Fate, LmExample) {
        let found = self.ids.len() - self.answer;
        let excess = self.ids.len().saturating_sub(most);
        // One token at least must stand before the completion, to predict it from.
        let least = self.keep.max(1);
        let cut = excess.min(self.answer.saturating_sub(least));
        let fate = match (excess, excess - cut) {
            (0, _) => Fate::Whole,
            (_, 0) => Fate::PromptCut,
            _ if least >= most => Fate::NothingLeft { kept: least },
            _ => Fate::CompletionCut { found },
        };
        self.cut_prompt(cut);
        self.ids.truncate(most);
        let length = self.ids.len();
        let inside = |range: Range<usize>| range.start.max(1)..range.end.min(length);
        let example = LmExample {
            ids: self.ids,
            loss: (self.loss.into_iter().map(inside))
                .filter(|range| !range.is_empty())
                .collect(),
            completion_start: self.answer,
            prompt_text: self.prompt_text,
            completion_text: self.completion_text,
        };
        (fate, example)
    }

    /// Takes tokens out behind those that are kept.
    fn cut_prompt(&mut self, cut: usize) {
        let keep = self.keep.min(self.answer);
        self.ids.drain(keep..keep + cut);
        let moved = |place: usize| match place <= keep {
            true => place,
            false => keep.max(place.saturating_sub(cut)),
        };
        self.answer = moved(self.answer);
        for range in &mut self.loss {
            *range = moved(range.start)..moved(range.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(keep: usize, prompt: usize, answer: usize) -> Draft {
        let start = keep + prompt;
        Draft {
            ids: (0..(start + answer) as u32).collect(),
            loss: vec![start..start + answer],
            keep,
            answer: start,
            prompt_text: String::new(),
            completion_text: String::new(),
        }
    }

    #[test]
    fn the_prompt_gives_way_behind_what_is_kept() {
        let (fate, example) = draft(1, 5, 3).fit(6);
        assert_eq!(fate, Fate::PromptCut);
        assert_eq!(example.ids, [0, 4, 5, 6, 7, 8]);
        assert_eq!(
            (example.completion_start, example.loss),
            (3, vec![3..6]),
            "the completion is whole"
        );
    }

    #[test]
    fn a_completion_gives_way_only_when_the_prompt_has() {
        let (fate, example) = draft(1, 5, 8).fit(6);
        assert_eq!(fate, Fate::CompletionCut { found: 8 });
        assert_eq!(example.ids, [0, 6, 7, 8, 9, 10]);
        let (fate, example) = draft(0, 5, 8).fit(6);
        assert_eq!(fate, Fate::CompletionCut { found: 8 });
        assert_eq!(example.ids, [4, 5, 6, 7, 8, 9], "one token to predict from");
    }

    #[test]
    fn parts_learned_within_the_prompt_are_cut_with_it() {
        let mut chat = draft(2, 10, 4);
        chat.loss = vec![3..5, 7..9, 12..16];
        let (_, example) = chat.fit(10);
        assert_eq!(example.ids[..3], [0, 1, 8]);
        assert_eq!(example.loss, [2..3, 6..10]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_fits_keeps_its_completion_and_what_does_not_is_told(
            keep in 0..6usize, prompt in 0..20usize, answer in 1..20usize, most in 3..30usize,
        ) {
            prop_assume!(keep + prompt > 0);
            let (fate, example) = draft(keep, prompt, answer).fit(most);
            prop_assert!(example.ids.len() <= most);
            let learned: usize = example.loss.iter().map(|r| r.len()).sum();
            match fate {
                Fate::Whole => prop_assert_eq!(example.ids.len(), keep + prompt + answer),
                Fate::PromptCut => prop_assert_eq!(learned, answer),
                Fate::CompletionCut { .. } => prop_assert!(learned > 0 && learned < answer),
                Fate::NothingLeft { .. } => prop_assert_eq!(learned, 0),
            }
            if !matches!(fate, Fate::NothingLeft { .. }) {
                prop_assert_eq!(example.ids[..keep].to_vec(), (0..keep as u32).collect::<Vec<_>>());
                prop_assert!(example.completion_start >= 1);
                prop_assert_eq!(
                    example.ids[example.completion_start] as usize, keep + prompt,
                    "the completion still starts with its first token"
                );
            }
        }
    }
}
