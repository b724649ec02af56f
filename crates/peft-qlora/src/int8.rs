//! 8-bit weights, one scale a row.
//!
//! Paper: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
//! arXiv 2208.07339. The codes and scales are those of bitsandbytes 0.50.2.
//! Differs from: the paper's product. It quantises activations as well, multiplies in integers, and
//! keeps columns whose activations reach a threshold (6.0) in 16 bits. Here only the weight is in 8
//! bits: a product decodes it on the way, block by block, and computes with the activations as they
//! are. That loses less, needs no threshold, and has an exact gradient of the input.

use burn::tensor::f16;
use peft_core::{CoreError, Dense, Proj, Site, Storage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::packed_linear::PackedLinear;
use crate::storage::PlainWeight;

/// What one step of a code is worth, as a fraction of the row's scale.
pub(crate) const STEP: f32 = 1.0 / 127.0;

/// Frozen weights in 8 bits, `storage = "int8"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Int8 {}

impl Storage for Int8 {
    fn name(&self) -> String {
        "int8".into()
    }

    fn pack(&self, site: &Site, dense: Dense) -> Result<Proj, CoreError> {
        // bitsandbytes rounds a weight to 16 bits before it looks for a row's largest magnitude.
        let expected = "a number that 16 bits hold (at most 65504), because bitsandbytes quantises \
                        8-bit weights from 16 bits";
        let weight = PlainWeight::read(site, &dense, expected, |v| f16::from_f32(v).is_finite())?;
        let encoded = encode(&weight.values, weight.dims[1]);
        let packed = PackedLinear::int8(encoded, weight.dims, dense.bias, &weight.device);
        Ok(Proj::new(packed))
    }

    fn bytes(&self, (d_in, d_out): (usize, usize)) -> usize {
        d_in * d_out + 4 * d_out
    }
}

/// A matrix in 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// One code a value, from -127 to 127.
    pub codes: Vec<i8>,
    /// The largest magnitude of each row.
    pub absmax: Vec<f32>,
}

/// Encodes the rows of a matrix, each of so many values.
///
/// # Panics
/// If the rows are empty.
pub fn encode(values: &[f32], row: usize) -> Encoded {
    let mut codes = vec![0; values.len()];
    let absmax = values
        .par_chunks(row)
        .zip(codes.par_chunks_mut(row))
        .map(|(values, codes)| encode_row(values, codes))
        .collect();
    Encoded { codes, absmax }
}

fn encode_row(values: &[f32], codes: &mut [i8]) -> f32 {
    let half = |v: &f32| f16::from_f32(*v).to_f32();
    let absmax = values.iter().map(half).fold(0.0f32, |m, v| m.max(v.abs()));
    // PyTorch divides a number by a tensor as it multiplies by its reciprocal.
    let factor = 1.0 / absmax * 127.0;
    for (code, v) in codes.iter_mut().zip(values) {
        // A row of zeros has the factor infinity; the cast turns its NaN into 0, as it should be.
        *code = (half(v) * factor).round_ties_even() as i8;
    }
    absmax
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Decoder, ScaleSlices};

    fn decoded(encoded: &Encoded, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; encoded.codes.len()];
        let scales = ScaleSlices::Exact(&encoded.absmax);
        Decoder::int8(&encoded.codes, scales, row).read_parallel(0, &mut out);
        out
    }

    #[test]
    fn values_come_back_within_half_a_step_of_their_own_row() {
        let values: Vec<f32> = (0..7 * 33)
            .map(|i| (i as f32 * 0.7).sin() * 10f32.powi(i / 33 - 3))
            .collect();
        let encoded = encode(&values, 33);
        for (i, (v, back)) in values.iter().zip(decoded(&encoded, 33)).enumerate() {
            let step = encoded.absmax[i / 33] * STEP;
            // Half a step, and what 16 bits take from the value before.
            let most = 0.50001 * step + v.abs() * 2f32.powi(-11) + 2f32.powi(-25);
            assert!((v - back).abs() <= most, "{i}: {v} {back}");
        }
    }

    #[test]
    fn a_row_of_zeros_comes_back_as_zeros() {
        let encoded = encode(&[0.0, 0.0, 4.0, -1.0], 2);
        assert_eq!(encoded.absmax, [0.0, 4.0]);
        assert_eq!(encoded.codes, [0, 0, 127, -32]);
        assert_eq!(decoded(&encoded, 2)[..2], [0.0, 0.0]);
    }
}
