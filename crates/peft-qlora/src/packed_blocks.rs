//! A packed weight as a product reads it: block by block, decoded on the way.

use core::ops::Range;

use kernels::product::{Blocks, transposed};

use crate::codec::Decoder;

/// A row-major matrix in codes.
#[derive(Clone, Copy)]
pub(crate) struct PackedBlocks<'a> {
    decoder: &'a Decoder<'a>,
    shape: [usize; 2],
}

/// The same, transposed.
pub(crate) struct Transposed<'a>(PackedBlocks<'a>);

impl<'a> PackedBlocks<'a> {
    /// A matrix of this shape, whose codes the decoder reads row by row.
    pub(crate) fn new(decoder: &'a Decoder<'a>, shape: [usize; 2]) -> Self {
        Self { decoder, shape }
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> Transposed<'a> {
        Transposed(self)
    }
}

/// Packed rows, and values of each, that are decoded before they are transposed: 24 kB.
const SQUARE: [usize; 2] = [16, 384];

impl Blocks for PackedBlocks<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn copy(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], stride: usize) {
        let [_, width] = self.shape;
        for (i, row) in rows.enumerate() {
            let out = &mut out[i * stride..][..cols.len()];
            self.decoder.read(row * width + cols.start, out);
        }
    }
}

impl Blocks for Transposed<'_> {
    fn shape(&self) -> [usize; 2] {
        let [rows, cols] = self.0.shape;
        [cols, rows]
    }

    fn copy(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], stride: usize) {
        // Codes can only be read along the rows of what is packed, which are columns here.
        let [most_packed, most_rows] = SQUARE;
        let mut decoded = [0.0; SQUARE[0] * SQUARE[1]];
        for first_row in rows.clone().step_by(most_rows) {
            let some_rows = first_row..rows.end.min(first_row + most_rows);
            for first_col in cols.clone().step_by(most_packed) {
                let some_cols = first_col..cols.end.min(first_col + most_packed);
                let size = [some_rows.len(), some_cols.len()];
                self.0
                    .copy(some_cols, some_rows.clone(), &mut decoded, most_rows);
                let place = (first_row - rows.start) * stride + first_col - cols.start;
                transposed(&decoded, most_rows, size, &mut out[place..], stride);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code_book::NF4;
    use crate::codec::{ScaleSlices, encode};

    #[test]
    fn any_block_reads_as_the_same_block_of_the_dense_matrix_and_of_its_transpose() {
        let shape @ [rows, width] = [37, 801];
        let values: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.37).sin()).collect();
        let encoded = encode(&values, 64, &NF4);
        let scales = ScaleSlices::Exact(&encoded.absmax);
        let decoder = Decoder::new(&encoded.codes, scales, 64, &NF4);
        let mut dense = vec![0.0; values.len()];
        decoder.read(0, &mut dense);
        let packed = PackedBlocks::new(&decoder, shape);
        for (some, cols) in [
            (0..37, 0..801),
            (3..20, 5..53),
            (36..37, 400..801),
            (1..33, 0..16),
        ] {
            let size = some.len() * cols.len();
            let (mut block, mut turned) = (vec![0.0; size], vec![0.0; size]);
            packed.copy(some.clone(), cols.clone(), &mut block, cols.len());
            packed
                .t()
                .copy(cols.clone(), some.clone(), &mut turned, some.len());
            for (i, row) in some.clone().enumerate() {
                for (j, col) in cols.clone().enumerate() {
                    assert_eq!(block[i * cols.len() + j], dense[row * width + col]);
                    assert_eq!(turned[j * some.len() + i], dense[row * width + col]);
                }
            }
        }
    }
}
