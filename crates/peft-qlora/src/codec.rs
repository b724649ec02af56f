//! Numbers to 4-bit codes, and codes of 4 or 8 bits back to numbers, block by block.
//!
//! The flat sequence of values is cut into blocks; a block is kept as its largest magnitude and one
//! code a value. The last block may be short. Of 4-bit codes two go to a byte, the first in the high
//! nibble; [`int8`](crate::int8) makes those of 8 bits, whose blocks are the rows of a matrix.

use rayon::prelude::*;

use crate::code_book::CodeBook;
use crate::double_quant::{self, NESTED_BLOCK};
use crate::int8::STEP as INT8_STEP;

/// Block sizes that bitsandbytes knows.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Smallest divisor of a block, as in bitsandbytes: a block of zeros has a scale of zero.
const TINY: f32 = 1e-38;

/// A sequence of numbers in 4 bits each.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Two codes a byte; an odd last value shares its byte with the code of zero.
    pub codes: Vec<u8>,
    /// The largest magnitude of each block.
    pub absmax: Vec<f32>,
}

/// Encodes values in blocks.
///
/// # Panics
/// If the block size is odd or zero.
pub fn encode(values: &[f32], block_size: usize, book: &CodeBook) -> Encoded {
    assert!(
        block_size > 0 && block_size.is_multiple_of(2),
        "blocks fill whole bytes"
    );
    let mut codes = vec![0; values.len().div_ceil(2)];
    let absmax = values
        .par_chunks(block_size)
        .zip(codes.par_chunks_mut(block_size / 2))
        .with_min_len(128)
        .map(|(block, bytes)| encode_block(block, block_size, book, bytes))
        .collect();
    Encoded { codes, absmax }
}

fn encode_block(block: &[f32], block_size: usize, book: &CodeBook, bytes: &mut [u8]) -> f32 {
    let absmax = block.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let mut fractions = vec![0.0; bytes.len() * 2];
    // bitsandbytes multiplies whole blocks by the reciprocal and divides a short one: the two
    // round differently, and its scale of a short block is never zero.
    let absmax = if block.len() == block_size {
        let factor = 1.0 / absmax.max(TINY);
        fill(&mut fractions, block, |v| v * factor);
        absmax
    } else {
        let absmax = absmax.max(TINY);
        fill(&mut fractions, block, |v| v / absmax);
        absmax
    };
    let mut codes = vec![0; fractions.len()];
    book.nearest(&fractions, &mut codes);
    for (byte, pair) in bytes.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = pair[0] << 4 | pair[1];
    }
    absmax
}

fn fill(fractions: &mut [f32], block: &[f32], scaled: impl Fn(f32) -> f32) {
    for (fraction, v) in fractions.iter_mut().zip(block) {
        *fraction = scaled(*v).clamp(-1.0, 1.0);
    }
}

/// The scales of the blocks, as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum ScaleSlices<'a> {
    /// One 32-bit number a block.
    Exact(&'a [f32]),
    /// Double quantisation: one byte a block.
    Quantised {
        /// Codes of the dynamic map.
        absmax: &'a [u8],
        /// One number for each [`NESTED_BLOCK`] of them.
        nested_absmax: &'a [f32],
        /// The mean that was taken off.
        offset: f32,
    },
}

impl ScaleSlices<'_> {
    /// The scale of one block.
    fn get(&self, block: usize) -> f32 {
        match *self {
            Self::Exact(absmax) => absmax[block],
            Self::Quantised {
                absmax,
                nested_absmax,
                offset,
            } => {
                let fraction = double_quant::dynamic_map()[usize::from(absmax[block])];
                fraction * nested_absmax[block / NESTED_BLOCK] + offset
            }
        }
    }
}

/// Reads any stretch of an encoded sequence.
pub struct Decoder<'a> {
    codes: Codes<'a>,
    scales: ScaleSlices<'a>,
    block_size: usize,
}

/// Codes, and what they stand for as fractions of their block's scale.
enum Codes<'a> {
    /// Two a byte.
    FourBit {
        bytes: &'a [u8],
        pairs: Box<[[f32; 2]; 256]>,
    },
    /// One a byte.
    Int8(&'a [i8]),
}

impl<'a> Decoder<'a> {
    /// A reader of 4-bit codes that were made with this table and block size.
    pub fn new(
        codes: &'a [u8],
        scales: ScaleSlices<'a>,
        block_size: usize,
        book: &CodeBook,
    ) -> Self {
        let pairs = Box::new(book.pairs());
        Self {
            codes: Codes::FourBit {
                bytes: codes,
                pairs,
            },
            scales,
            block_size,
        }
    }

    /// A reader of 8-bit codes; a block is a row of the matrix.
    pub fn int8(codes: &'a [i8], scales: ScaleSlices<'a>, row: usize) -> Self {
        Self {
            codes: Codes::Int8(codes),
            scales,
            block_size: row,
        }
    }

    /// Writes the values from `start` on to `out`, as many as fit.
    ///
    /// # Panics
    /// If the sequence ends before `out` is full.
    pub fn read(&self, start: usize, mut out: &mut [f32]) {
        let mut at = start;
        while !out.is_empty() {
            let len = (self.block_size - at % self.block_size).min(out.len());
            let (part, rest) = out.split_at_mut(len);
            self.read_in_block(at, self.scales.get(at / self.block_size), part);
            (at, out) = (at + len, rest);
        }
    }

    /// The same by several threads.
    pub fn read_parallel(&self, start: usize, out: &mut [f32]) {
        const SHARE: usize = 1 << 14;
        out.par_chunks_mut(SHARE)
            .enumerate()
            .for_each(|(i, part)| self.read(start + i * SHARE, part));
    }

    fn read_in_block(&self, at: usize, scale: f32, out: &mut [f32]) {
        match &self.codes {
            Codes::FourBit { bytes, pairs } => read_pairs(bytes, pairs, at, scale, out),
            Codes::Int8(codes) => {
                let codes = &codes[at..][..out.len()];
                for (v, code) in out.iter_mut().zip(codes) {
                    *v = f32::from(*code) * scale * INT8_STEP;
                }
            }
        }
    }
}

/// Writes values of one block from the one at `at` on.
fn read_pairs(bytes: &[u8], pairs: &[[f32; 2]; 256], at: usize, scale: f32, mut out: &mut [f32]) {
    let pair = |byte: usize| pairs[usize::from(bytes[byte])];
    if !at.is_multiple_of(2) {
        out[0] = pair(at / 2)[1] * scale;
        out = &mut out[1..];
    }
    let first = at.div_ceil(2);
    let (whole, last) = out.as_chunks_mut::<2>();
    let codes = &bytes[first..][..whole.len()];
    for (values, byte) in whole.iter_mut().zip(codes) {
        *values = pairs[usize::from(*byte)].map(|fraction| fraction * scale);
    }
    if let [value] = last {
        *value = pair(first + whole.len())[0] * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code_book::{FP4, NF4};
    use burn::tensor::Device;
    use peft_core::Init;

    pub(crate) fn normal(n: usize) -> Vec<f32> {
        let values = Init::new(5, &Device::flex()).normal([n], 1.0);
        values.into_data().try_to_vec().unwrap()
    }

    fn decode(encoded: &Encoded, n: usize, block_size: usize, double: bool) -> Vec<f32> {
        decode_with(&NF4, encoded, n, block_size, double)
    }

    fn decode_with(
        book: &CodeBook,
        encoded: &Encoded,
        n: usize,
        block_size: usize,
        double: bool,
    ) -> Vec<f32> {
        let mut out = vec![0.0; n];
        let quantised = double_quant::quantise(&encoded.absmax);
        let scales = match double {
            true => quantised.slices(),
            false => ScaleSlices::Exact(&encoded.absmax),
        };
        Decoder::new(&encoded.codes, scales, block_size, book).read_parallel(0, &mut out);
        out
    }

    fn rmse(book: &CodeBook, block_size: usize, double: bool) -> f64 {
        let values = normal(1 << 20);
        let encoded = encode(&values, block_size, book);
        let out = decode_with(book, &encoded, values.len(), block_size, double);
        let squares = values
            .iter()
            .zip(&out)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>();
        (squares / values.len() as f64).sqrt()
    }

    #[test]
    fn the_error_on_normal_values_is_that_of_bitsandbytes() {
        // Measured with bitsandbytes 0.50.2 on N(0, 1).
        let rows = [
            (&NF4, 64, false, 0.09196),
            (&NF4, 64, true, 0.09198),
            (&NF4, 32, false, 0.0873),
            (&NF4, 128, false, 0.0956),
            (&FP4, 64, false, 0.1219),
        ];
        for (book, block_size, double, expected) in rows {
            let (name, found) = (book.name, rmse(book, block_size, double));
            assert!(
                (found - expected).abs() < 2e-4,
                "{name} {block_size} {double}: {found}"
            );
        }
    }

    #[test]
    fn any_stretch_reads_as_the_same_stretch_of_the_whole() {
        let values = normal(32 * 5 + 7);
        let encoded = encode(&values, 32, &NF4);
        let whole = decode(&encoded, values.len(), 32, false);
        let decoder = Decoder::new(
            &encoded.codes,
            ScaleSlices::Exact(&encoded.absmax),
            32,
            &NF4,
        );
        for start in 0..values.len() {
            for end in start..=values.len() {
                let mut part = vec![0.0; end - start];
                decoder.read(start, &mut part);
                assert_eq!(part, whole[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn the_first_value_is_in_the_high_nibble_and_an_odd_end_is_padded_with_zero() {
        let encoded = encode(&[1.0, -1.0, 0.0, 1.0, -2.0], 32, &NF4);
        assert_eq!(encoded.absmax, [2.0]);
        let code = |x: f32| NF4.values.iter().position(|v| *v == x).unwrap() as u8;
        let half = 13; // 0.5626 is the nearest to 0.5 above the bound 0.5017, below it is 12
        assert_eq!(encoded.codes[0] >> 4, half - 1);
        assert_eq!(encoded.codes[1] >> 4, code(0.0));
        assert_eq!(encoded.codes[2], code(-1.0) << 4 | code(0.0));
    }

    #[test]
    fn blocks_of_zeros_come_back_as_zeros() {
        for n in [64, 65] {
            let encoded = encode(&vec![0.0; n], 64, &NF4);
            assert!(decode(&encoded, n, 64, false).iter().all(|v| *v == 0.0));
            assert!(
                decode(&encoded, n, 64, true)
                    .iter()
                    .all(|v| v.abs() < 1e-30)
            );
        }
    }
}
