//! A chat as token ids, of which the assistant's turns are learned.

use std::ops::Range;

use super::{Draft, EndOfTurn, LmEncoder, LossOn};
use crate::TaskError;
use crate::chat_template::Compiled;
use crate::layout::{Role, Turn};

/// A chat as an example.
pub(super) struct Chat {
    pub(super) draft: Draft,
    /// Whether its first turns were left out.
    pub(super) shortened: bool,
    pub(super) end_of_turn: Option<EndOfTurn>,
}

impl LmEncoder {
    /// Writes a chat. One that is too long loses its first turns behind the system's, up to a turn
    /// of the user, until it fits or one question is left.
    pub(super) fn chat(
        &self,
        template: &Compiled<'_>,
        mut turns: Vec<Turn>,
    ) -> Result<Chat, TaskError> {
        let mut shortened = false;
        loop {
            let written = self.written(template, &turns)?;
            let excess = written.ids.len().saturating_sub(self.config.max_length);
            let Some(drop) = (excess > 0)
                .then(|| written.droppable(&turns, excess))
                .flatten()
            else {
                return Ok(Chat {
                    end_of_turn: self.end_of_turn(&written),
                    draft: self.draft(written, &turns),
                    shortened,
                });
            };
            turns.drain(drop);
            shortened = true;
        }
    }

    fn written(&self, template: &Compiled<'_>, turns: &[Turn]) -> Result<Written, TaskError> {
        let text = template.text(turns)?;
        let encoding = self
            .bare
            .encode(text.as_str(), false)
            .map_err(TaskError::tokenizer)?;
        let mut written = Written {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            text,
            answers: Vec::new(),
            keep: 0,
        };
        let last = turns.len() - 1;
        for (index, turn) in turns.iter().enumerate() {
            if turn.role != Role::Assistant {
                continue;
            }
            match written.span(template, turns, index)? {
                Some(span) => written.answers.push((index, span)),
                // The spans in between say only what is learned, which is everything.
                None if index < last && self.config.loss_on == LossOn::All => {}
                None => {
                    return Err(template.error(format!(
                        "turn {} does not only add to the text before it, so the tokens to learn \
                         cannot be told; choose another with `chat_template`, or learn all \
                         tokens of chats of one answer with `loss_on = \"all\"`",
                        index + 1
                    )));
                }
            }
        }
        written.keep = self.kept(template, turns, &written);
        Ok(written)
    }

    /// Tokens in front that are never cut: the system's turn if it stands by itself and leaves
    /// room, else the token that begins a text.
    fn kept(&self, template: &Compiled<'_>, turns: &[Turn], written: &Written) -> usize {
        let begins = template.begins();
        let bos = begins.and_then(|bos| self.bare.token_to_id(bos));
        let bos = usize::from(bos.is_some() && written.ids.first().copied() == bos);
        if turns[0].role != Role::System {
            return bos;
        }
        // Some templates refuse a system's turn alone, others write it into the user's.
        match template.text(&turns[..1]) {
            Ok(text) if written.text.starts_with(&text) => {
                let tokens = written.offsets.partition_point(|o| o.1 <= text.len());
                match tokens <= self.config.max_length / 2 {
                    true => tokens.max(bos),
                    false => bos,
                }
            }
            _ => bos,
        }
    }

    fn draft(&self, mut written: Written, turns: &[Turn]) -> Draft {
        let (_, last) = &written.answers[written.answers.len() - 1];
        let prompt_text = written.text[..last.text.start].to_string();
        // Behind the last answer there is nothing to learn.
        written.ids.truncate(last.tokens.end);
        let answer = last.tokens.start;
        let mut loss: Vec<_> = (written.answers.iter())
            .map(|(_, span)| span.tokens.clone())
            .collect();
        if last.mark.is_empty() && !written.ids.last().is_some_and(|id| self.is_special(*id)) {
            // Nothing says that the turn is over, so the end of the text does.
            written.ids.push(self.eos);
            if let Some(last) = loss.last_mut() {
                last.end += 1;
            }
        }
        Draft {
            loss: self.loss(loss, written.ids.len()),
            ids: written.ids,
            keep: written.keep.min(answer),
            answer,
            prompt_text,
            completion_text: turns[turns.len() - 1].content.trim().to_string(),
        }
    }

    fn end_of_turn(&self, written: &Written) -> Option<EndOfTurn> {
        let (_, last) = written.answers.last()?;
        // An ordinary token of the same text may stand within an answer.
        let token = self.bare.token_to_id(&last.mark);
        let token = token.filter(|id| self.is_special(*id));
        (!last.mark.is_empty()).then(|| EndOfTurn {
            text: last.mark.clone(),
            token,
        })
    }

    fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }
}

/// A chat as text and as tokens.
struct Written {
    text: String,
    ids: Vec<u32>,
    /// The bytes of the text that each token is of.
    offsets: Vec<(usize, usize)>,
    /// The turns of the assistant by their place, and what of the chat they are.
    answers: Vec<(usize, Span)>,
    keep: usize,
}

/// A turn of the assistant within a chat.
struct Span {
    text: Range<usize>,
    tokens: Range<usize>,
    /// Where the turn ends, with the space that may follow its mark.
    through: usize,
    /// What says that the turn is over.
    mark: String,
}

impl Written {
    /// What the turn adds to the chat, behind what the template writes to let the assistant speak.
    /// None if it does not only add.
    fn span(
        &self,
        template: &Compiled<'_>,
        turns: &[Turn],
        index: usize,
    ) -> Result<Option<Span>, TaskError> {
        let before = template.prompt(&turns[..index])?;
        let through = template.text(&turns[..=index])?;
        if !(through.starts_with(&before) && self.text.starts_with(&through)) {
            return Ok(None);
        }
        let added = &through[before.len()..];
        let content = turns[index].content.trim();
        // What follows the content says that the turn is over, and space behind that is none of
        // the assistant's doing. A template may change the content; then there is no telling.
        let lead = added.len() - added.trim_start().len();
        let found = match added[lead..].starts_with(content) {
            true => Some(lead),
            false => added.find(content),
        };
        let behind = found.map_or("", |at| &added[at + content.len()..]);
        let mark = behind.trim();
        let end = match mark.is_empty() {
            true => through.len(),
            false => before.len() + added.trim_end().len(),
        };
        let text = before.len()..end;
        Ok((!text.is_empty()).then(|| Span {
            tokens: self.tokens(&text),
            text,
            through: through.len(),
            mark: mark.to_string(),
        }))
    }

    /// The tokens that a part of the text is of; a token that starts before it and ends in it
    /// belongs to it, as it can only be predicted together with its end.
    fn tokens(&self, text: &Range<usize>) -> Range<usize> {
        let start = self.offsets.partition_point(|o| o.1 <= text.start);
        let end = self.offsets.partition_point(|o| o.0 < text.end);
        start..end.max(start)
    }

    /// The first turns behind the system's to leave out so that at least `excess` tokens go, or as
    /// many as can. The rest starts with a turn of the user.
    fn droppable(&self, turns: &[Turn], excess: usize) -> Option<Range<usize>> {
        let first = usize::from(turns[0].role == Role::System);
        let starts = self.answers.iter().filter_map(|(index, span)| {
            let next = index + 1;
            let asks = turns.get(next).is_some_and(|turn| turn.role == Role::User);
            let place = self.offsets.partition_point(|o| o.1 <= span.through);
            asks.then_some((next, place - self.keep.min(place)))
        });
        let mut drop = None;
        for (next, tokens) in starts.filter(|(next, _)| *next > first) {
            drop = Some(first..next);
            if tokens >= excess {
                break;
            }
        }
        drop
    }
}
