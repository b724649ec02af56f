//! Token ids of several texts, padded to one length.

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::attend::Texts;
use peft_core::{LookupSlot, Pass, Text};

use crate::gpt2::embed;

/// How positions are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// From the left edge, padding counted: 0, 1, 2, ...
    FromLeft,
    /// Real tokens only, from `start`; padding gets `padding` (RoBERTa: `pad + 1` and `pad`).
    RealTokens {
        /// Position of the first real token.
        start: usize,
        /// Position of padding.
        padding: usize,
    },
}

impl Positions {
    /// The position of a first token.
    pub(crate) fn first(self) -> usize {
        match self {
            Positions::FromLeft => 0,
            Positions::RealTokens { start, .. } => start,
        }
    }
}

/// Which end of a short row is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before the text: for generation, so that new tokens follow at the right edge.
    Left,
    /// After the text.
    Right,
}

/// A padded batch on a device.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, `[batch, sequence]`.
    pub ids: Tensor<2, Int>,
    /// Position ids, `[batch, sequence]`.
    pub positions: Tensor<2, Int>,
    /// 1 at real tokens and 0 at padding, `[batch, sequence]`; absent where nothing is padded.
    pub mask: Option<Tensor<2>>,
    /// The number of the task that every row belongs to, `[batch]`; absent where all are of task 0.
    pub tasks: Option<Tensor<1, Int>>,
    /// 1 at tokens that are given, 0 at those to be written and at padding behind them, `[batch,
    /// sequence]`; absent where all are given.
    pub prompt: Option<Tensor<2>>,
    /// The texts of a packed row; absent where every row is one text.
    pub texts: Option<Texts>,
    /// What is added to the embedded tokens, `[batch, sequence, d]`: a small change that training is
    /// to withstand. Virtual tokens and positions are not changed.
    pub perturbation: Option<Tensor<3>>,
}

/// How a model reads a batch.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    /// The position of a first token.
    pub(crate) first: usize,
    /// The number of keys a cache holds already.
    pub(crate) seen: usize,
    /// Whether a token must not depend on later ones.
    pub(crate) causal: bool,
}

/// What enters the layers: embedded tokens, virtual ones of the method in front.
pub(crate) struct Embedded {
    /// `[batch, sequence, d]`
    pub(crate) rows: Tensor<3>,
    /// `[batch, sequence]`
    pub(crate) positions: Tensor<2, Int>,
    /// The mask of all keys so far, `[batch, keys]`.
    pub(crate) mask: Option<Tensor<2>>,
    /// Which of them are given, `[batch, keys]`.
    prompt: Option<Tensor<2>>,
}

impl Embedded {
    /// So many copies of every row, copy behind copy.
    fn copied(self, copies: usize) -> Self {
        if copies == 1 {
            return self;
        }
        Self {
            rows: self.rows.repeat_dim(0, copies),
            positions: self.positions.repeat_dim(0, copies),
            mask: self.mask.map(|mask| mask.repeat_dim(0, copies)),
            prompt: self.prompt.map(|prompt| prompt.repeat_dim(0, copies)),
        }
    }
}

impl Batch {
    /// Embeds the tokens; virtual tokens come before the first token and not again. The pass is told
    /// what tokens it is about; what enters the layers has every text once for each of the pass's
    /// copies.
    pub(crate) fn embed(
        &self,
        table: &Param<Tensor<2>>,
        lookup: Option<&LookupSlot>,
        reading: Reading,
        pass: &Pass<'_>,
    ) -> Embedded {
        let embedded = self.embedded(table, lookup, reading, pass);
        pass.see(Text {
            mask: embedded.mask.clone(),
            prompt: embedded.prompt.clone(),
            seen: reading.seen,
            tasks: self.tasks.clone(),
            causal: reading.causal,
        });
        embedded.copied(pass.copies)
    }

    fn embedded(
        &self,
        table: &Param<Tensor<2>>,
        lookup: Option<&LookupSlot>,
        reading: Reading,
        pass: &Pass<'_>,
    ) -> Embedded {
        let rows = embed(table, &self.ids);
        let rows = LookupSlot::apply(lookup, &self.ids, rows, pass);
        let rows = match &self.perturbation {
            Some(change) => rows + change.clone(),
            None => rows,
        };
        let positions = self.positions_in(pass);
        let (mask, given) = (self.mask.clone(), self.prompt.clone());
        let Some(prompt) = LookupSlot::prompt(lookup, pass) else {
            return Embedded {
                rows,
                positions,
                mask,
                prompt: given,
            };
        };
        assert!(
            self.texts.is_none(),
            "a method with virtual tokens says that texts need rows of their own"
        );
        let ([batch, _, d], [n, _]) = (rows.dims(), prompt.dims());
        let with_virtual_ones = |mask: Tensor<2>| {
            let virtual_ones = Tensor::ones([batch, n], &mask.device());
            Tensor::cat(vec![virtual_ones, mask], 1)
        };
        let (mask, given) = (mask.map(with_virtual_ones), given.map(with_virtual_ones));
        if reading.seen > 0 {
            return Embedded {
                rows,
                positions,
                mask,
                prompt: given,
            };
        }
        let prompt = prompt.unsqueeze::<3>().expand([batch, n, d]);
        let (from, to) = (reading.first as i64, (reading.first + n) as i64);
        let own = Tensor::<1, Int>::arange(from..to, &positions.device());
        let own = own.unsqueeze::<2>().expand([batch, n]);
        Embedded {
            rows: Tensor::cat(vec![prompt, rows], 1),
            positions: Tensor::cat(vec![own, positions], 1),
            mask,
            prompt: given,
        }
    }

    /// The positions as the method of a pass moves them.
    pub(crate) fn positions_in(&self, pass: &Pass<'_>) -> Tensor<2, Int> {
        match pass.position_offset {
            0 => self.positions.clone(),
            offset => self.positions.clone().add_scalar(offset as i64),
        }
    }

    /// The batch with the number of every row's task.
    ///
    /// # Panics
    /// If there are not as many numbers as rows.
    #[must_use]
    pub fn of_tasks(mut self, tasks: &[usize]) -> Self {
        let [rows, _] = self.ids.dims();
        assert_eq!(tasks.len(), rows, "every row has a task");
        let numbers: Vec<i64> = tasks.iter().map(|task| *task as i64).collect();
        let several = tasks.iter().any(|task| *task != 0);
        let device = self.ids.device();
        self.tasks = several.then(|| Tensor::from_data(TensorData::new(numbers, [rows]), &device));
        self
    }

    /// The batch with how many first tokens of every row are given, where rows are padded behind
    /// their texts.
    ///
    /// # Panics
    /// If there are not as many numbers as rows.
    #[must_use]
    pub fn with_prompts(mut self, lengths: &[usize]) -> Self {
        let [rows, length] = self.ids.dims();
        assert_eq!(lengths.len(), rows, "every row has a prompt");
        let given = |given: usize| (0..length).map(move |i| f32::from(u8::from(i < given)));
        let values: Vec<f32> = lengths.iter().copied().flat_map(given).collect();
        let values = TensorData::new(values, [rows, length]);
        self.prompt = Some(Tensor::from_data(values, &self.ids.device()));
        self
    }

    /// Pads rows to the longest.
    ///
    /// # Panics
    /// If there is no row, or all are empty.
    pub fn new(
        rows: &[&[u32]],
        pad: u32,
        side: Side,
        positions: Positions,
        device: &Device,
    ) -> Self {
        let length = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        assert!(length > 0, "a batch needs at least one token");
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for row in rows {
            let padding = length - row.len();
            let (before, after) = if side == Side::Left {
                (padding, 0)
            } else {
                (0, padding)
            };
            ids.extend(std::iter::repeat_n(pad, before));
            ids.extend_from_slice(row);
            ids.extend(std::iter::repeat_n(pad, after));
            mask.extend(std::iter::repeat_n(0.0, before));
            mask.extend(std::iter::repeat_n(1.0, row.len()));
            mask.extend(std::iter::repeat_n(0.0, after));
        }
        Self::from_parts(ids, mask, rows.len(), positions, device)
    }

    /// A batch of ids and mask as given, row by row.
    ///
    /// # Panics
    /// If the lengths are not multiples of `rows`.
    pub fn from_parts(
        ids: Vec<u32>,
        mask: Vec<f32>,
        rows: usize,
        positions: Positions,
        device: &Device,
    ) -> Self {
        assert!(rows > 0 && ids.len() == mask.len() && ids.len().is_multiple_of(rows));
        let shape = [rows, ids.len() / rows];
        let numbered = mask
            .chunks(shape[1])
            .flat_map(|row| number(row, positions))
            .collect();
        let int = |values: Vec<i64>| Tensor::from_data(TensorData::new(values, shape), device);
        let padded = mask.contains(&0.0);
        Self {
            ids: int(ids.into_iter().map(i64::from).collect()),
            positions: int(numbered),
            mask: padded.then(|| Tensor::from_data(TensorData::new(mask, shape), device)),
            tasks: None,
            prompt: None,
            texts: None,
            perturbation: None,
        }
    }

    /// Puts texts behind each other into one row, without padding: each is numbered from its own
    /// start and sees itself alone.
    ///
    /// # Panics
    /// If there is no text, or one is empty.
    pub fn packed(texts: &[&[u32]], positions: Positions, device: &Device) -> Self {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let numbered = lengths
            .iter()
            .flat_map(|n| number(&vec![1.0; *n], positions));
        let row = |values: Vec<i64>| {
            let shape = [1, values.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self {
            ids: row(texts.concat().into_iter().map(i64::from).collect()),
            positions: row(numbered.collect()),
            mask: None,
            tasks: None,
            prompt: None,
            texts: Some(Texts::new(&lengths)),
            perturbation: None,
        }
    }
}

/// The positions of one row.
fn number(mask: &[f32], positions: Positions) -> Vec<i64> {
    match positions {
        Positions::FromLeft => (0..mask.len() as i64).collect(),
        Positions::RealTokens { start, padding } => {
            let mut next = start as i64;
            let mut position = |real: f32| {
                if real == 0.0 {
                    return padding as i64;
                }
                next += 1;
                next - 1
            };
            mask.iter().map(|real| position(*real)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rows_are_padded_on_the_side_asked_for() {
        let rows: [&[u32]; 2] = [&[5, 6, 7], &[8]];
        let positions = Positions::RealTokens {
            start: 0,
            padding: 0,
        };
        let batch = Batch::new(&rows, 9, Side::Left, positions, &Device::flex());
        let ids: Vec<i64> = batch.ids.into_data().convert::<i64>().try_to_vec().unwrap();
        assert_eq!(ids, [5, 6, 7, 9, 9, 8]);
        let mask: Vec<f32> = batch.mask.unwrap().into_data().try_to_vec().unwrap();
        assert_eq!(mask, [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn roberta_counts_real_tokens_from_behind_the_padding_id() {
        let positions = Positions::RealTokens {
            start: 2,
            padding: 1,
        };
        assert_eq!(number(&[1.0, 1.0, 0.0], positions), [2, 3, 1]);
    }

    #[test]
    fn packed_texts_are_numbered_each_from_its_start() {
        let rows: [&[u32]; 2] = [&[5, 6, 7], &[8, 9]];
        let batch = Batch::packed(&rows, Positions::FromLeft, &Device::flex());
        let ints = |t: Tensor<2, Int>| t.into_data().convert::<i64>().try_to_vec::<i64>().unwrap();
        assert_eq!(ints(batch.ids), [5, 6, 7, 8, 9]);
        assert_eq!(ints(batch.positions), [0, 1, 2, 0, 1]);
        assert!(batch.mask.is_none() && batch.texts == Some(Texts::new(&[3, 2])));
    }

    #[test]
    fn a_batch_without_padding_carries_no_mask() {
        let rows: [&[u32]; 1] = [&[1, 2]];
        let batch = Batch::new(&rows, 0, Side::Right, Positions::FromLeft, &Device::flex());
        assert!(batch.mask.is_none());
    }
}
