//! What files of tokenizers need on top of the library, and a small byte-level BPE tokenizer, laid
//! out as GPT-2's and trained.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder, TokenizerImpl};

use crate::TaskError;

/// The one special token of a GPT-2 tokenizer: it ends a text and separates packed texts.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Fewest entries a byte-level vocabulary can have: every byte and [`END_OF_TEXT`].
const SMALLEST: usize = 257;

/// The tokenizer without the padding and truncation that its file may ask for: lengths are the
/// business of whoever makes examples and batches.
///
/// # Errors
/// If the library reports an error.
pub fn unlimited(mut tokenizer: Tokenizer) -> Result<Tokenizer, TaskError> {
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(TaskError::tokenizer)?;
    Ok(tokenizer)
}

/// The ids of the special tokens, which stand in no ordinary text.
#[must_use]
pub fn special_ids(tokenizer: &Tokenizer) -> HashSet<u32> {
    let added = tokenizer.get_added_tokens_decoder().into_iter();
    let special = added.filter(|(_, token)| token.special);
    special.map(|(id, _)| id).collect()
}

/// Trains a byte-level BPE tokenizer of at most `vocabulary` entries on `texts`.
///
/// As GPT-2's, but every digit is a token of its own, so that a number such as `101` is always cut
/// the same way and a model can learn numbers it meets in new places. `Tokenizer::save` writes the
/// `tokenizer.json` that Python's `tokenizers` and `transformers` read.
///
/// # Errors
/// If `vocabulary` is too small to hold every byte, or the library reports an error.
pub fn train_bpe(texts: &[String], vocabulary: usize) -> Result<Tokenizer, TaskError> {
    if vocabulary < SMALLEST {
        return Err(TaskError::Vocabulary {
            found: vocabulary,
            least: SMALLEST,
        });
    }
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocabulary)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let pieces = Sequence::new(vec![Digits::new(true).into(), byte_level.into()]);
    let mut tokenizer: TokenizerImpl<
        BPE,
        tokenizers::NormalizerWrapper,
        Sequence,
        ByteLevel,
        ByteLevel,
    > = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(pieces))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(TaskError::tokenizer)?;
    tokenizer
        .train(&mut trainer, texts.iter())
        .map_err(TaskError::tokenizer)?;
    // Through its own file format: what the caller uses is what a reader of the file gets.
    let json = tokenizer.to_string(false).map_err(TaskError::tokenizer)?;
    Tokenizer::from_bytes(json).map_err(TaskError::tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        (0..200)
            .map(|i| format!("'Pasta Tutorial' is at youtube.com/{i}, said user {i}."))
            .collect()
    }

    #[test]
    fn training_twice_gives_the_same_tokenizer() {
        let one = train_bpe(&texts(), 300).unwrap().to_string(false).unwrap();
        let two = train_bpe(&texts(), 300).unwrap().to_string(false).unwrap();
        assert_eq!(one, two);
    }

    #[test]
    fn every_text_survives_the_round_trip() {
        let tokenizer = train_bpe(&texts(), 300).unwrap();
        for text in [
            "'Pasta' (youtube.com/101)",
            "naïve 漢字 🍝\n\ttabs  ",
            "1234567890",
            "",
        ] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
    }

    #[test]
    fn digits_stand_alone() {
        let tokenizer = train_bpe(&texts(), 400).unwrap();
        let encoding = tokenizer.encode("youtube.com/101", true).unwrap();
        let tokens = encoding.get_tokens();
        assert_eq!(&tokens[tokens.len() - 3..], ["1", "0", "1"]);
    }

    #[test]
    fn the_end_of_text_is_one_token_and_no_more() {
        let tokenizer = train_bpe(&texts(), 270).unwrap();
        assert_eq!(tokenizer.encode(END_OF_TEXT, true).unwrap().get_ids(), [0]);
        assert_eq!(tokenizer.get_vocab_size(true), 270);
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_refused() {
        let error = train_bpe(&texts(), 256).unwrap_err();
        assert!(error.to_string().contains("at least 257"), "{error}");
    }
}
