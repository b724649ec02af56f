//! Double quantisation: the scales of the blocks in 8 bits, less their mean.
//!
//! Paper: Dettmers et al. 2023, arXiv 2305.14314, section 3. The 8-bit type is the signed dynamic
//! map of Dettmers et al. 2022, arXiv 2110.02861. Bits as bitsandbytes 0.50.2 computes them on a CPU.

use std::sync::LazyLock;

use crate::codec::ScaleSlices;

/// Scales that share one nested scale.
pub const NESTED_BLOCK: usize = 256;

/// Scales in 8 bits each.
#[derive(Clone, Debug, PartialEq)]
pub struct DoubleQuantised {
    /// Codes of [`dynamic_map`].
    pub absmax: Vec<u8>,
    /// Largest magnitude of each [`NESTED_BLOCK`] scales after the offset is taken off.
    pub nested_absmax: Vec<f32>,
    /// Mean of all scales.
    pub offset: f32,
}

impl DoubleQuantised {
    /// The same, borrowed, for reading.
    pub fn slices(&self) -> ScaleSlices<'_> {
        ScaleSlices::Quantised {
            absmax: &self.absmax,
            nested_absmax: &self.nested_absmax,
            offset: self.offset,
        }
    }
}

/// Quantises the scales of the blocks.
pub fn quantise(absmax: &[f32]) -> DoubleQuantised {
    let offset = mean(absmax);
    let centred: Vec<f32> = absmax.iter().map(|v| v - offset).collect();
    let mut codes = vec![0; centred.len()];
    let nested_absmax = centred
        .chunks(NESTED_BLOCK)
        .zip(codes.chunks_mut(NESTED_BLOCK))
        .map(|(block, codes)| quantise_block(block, codes))
        .collect();
    DoubleQuantised {
        absmax: codes,
        nested_absmax,
        offset,
    }
}

fn quantise_block(block: &[f32], codes: &mut [u8]) -> f32 {
    let largest = block.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    if largest > 0.0 {
        let factor = 1.0 / largest;
        for (code, v) in codes.iter_mut().zip(block) {
            *code = nearest(v * factor);
        }
    }
    largest
}

/// Number of equal bins of [-1, 1] in which bitsandbytes looks up codes on a CPU. Its CUDA kernel
/// compares with the exact midpoints, which decides otherwise for about one number in a thousand.
const BINS: usize = 1 << 16;

fn nearest(fraction: f32) -> u8 {
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(bin_codes);
    let bin = (fraction.clamp(-1.0, 1.0) + 1.0) * 0.5 * (BINS - 1) as f32 + 0.5;
    TABLE[bin as usize]
}

fn bin_codes() -> Vec<u8> {
    let map = dynamic_map();
    let mut code = 0;
    let bins = (0..BINS).map(|i| -1.0 + (2.0 * i as f32) / (BINS - 1) as f32);
    bins.map(|value| {
        while code < 255 && 0.5 * (map[code] + map[code + 1]) < value {
            code += 1;
        }
        code as u8
    })
    .collect()
}

/// The 256 values of the signed dynamic type: seven decades, each with twice the steps of the one
/// below, and 0 and 1.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let mut values = vec![0.0, 1.0];
        for decade in 0..7 {
            let factor = 10f64.powi(decade - 6) as f32;
            let steps = 1 << decade;
            for step in 0..steps {
                let mean = (boundary(step, steps) + boundary(step + 1, steps)) / 2.0;
                values.extend([factor * mean, -factor * mean]);
            }
        }
        values.sort_by(f32::total_cmp);
        values.try_into().expect("256 values")
    });
    &MAP
}

/// `torch.linspace(0.1, 1, steps + 1)[i]`, which counts from both ends and rounds once.
fn boundary(i: usize, steps: usize) -> f32 {
    let step = (1.0 - 0.1f32) / steps as f32;
    if i < steps.div_ceil(2) {
        step.mul_add(i as f32, 0.1)
    } else {
        step.mul_add(-((steps - i) as f32), 1.0)
    }
}

/// Mean of the scales, added in the order of PyTorch's CPU kernel on one thread, because the codes
/// depend on its last bit: eight lanes of four interleaved sums, those cascaded (ATen's `SumKernel`).
fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    let sum = if values.len() < LANES {
        let (singles, _) = values.as_chunks::<1>();
        interleaved_sum(singles)[0]
    } else {
        let (lanes, rest) = values.as_chunks::<LANES>();
        let rest = rest.iter().fold(0.0, |sum, v| sum + v);
        interleaved_sum(lanes).iter().fold(rest, |sum, v| sum + v)
    };
    sum / values.len() as f32
}

fn interleaved_sum<const L: usize>(rows: &[[f32; L]]) -> [f32; L] {
    let (groups, rest) = rows.as_chunks::<4>();
    let [first, others @ ..] = cascade_sum(groups);
    rest.iter()
        .chain(&others)
        .fold(first, |sum, row| add(sum, *row))
}

/// Four sums at once; every `2^level_power` groups a level's sum moves up one of four levels.
fn cascade_sum<const L: usize>(groups: &[[[f32; L]; 4]]) -> [[f32; L]; 4] {
    const LEVELS: usize = 4;
    let log = groups.len().next_power_of_two().trailing_zeros() as usize;
    let level_power = (log / LEVELS).max(4);
    let step = 1 << level_power;
    let mut sums = [[[0.0; L]; 4]; LEVELS];
    for (i, chunk) in groups.chunks(step).enumerate() {
        for group in chunk {
            sums[0] = add_group(sums[0], *group);
        }
        let done = (i + 1) * step;
        if chunk.len() < step {
            break;
        }
        for level in 1..LEVELS {
            sums[level] = add_group(sums[level], sums[level - 1]);
            sums[level - 1] = [[0.0; L]; 4];
            if done & ((step - 1) << (level * level_power)) != 0 {
                break;
            }
        }
    }
    let [first, others @ ..] = sums;
    others.into_iter().fold(first, add_group)
}

fn add_group<const L: usize>(a: [[f32; L]; 4], b: [[f32; L]; 4]) -> [[f32; L]; 4] {
    std::array::from_fn(|i| add(a[i], b[i]))
}

fn add<const L: usize>(a: [f32; L], b: [f32; L]) -> [f32; L] {
    std::array::from_fn(|i| a[i] + b[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_is_sorted_and_symmetric_but_for_its_ends() {
        let map = dynamic_map();
        assert!(map.is_sorted() && map[127] == 0.0 && map[255] == 1.0);
        assert!((1..=127).all(|i| map[127 - i] == -map[127 + i]));
    }

    #[test]
    fn scales_come_back_within_the_step_of_the_map() {
        let absmax: Vec<f32> = (0..700)
            .map(|i| 1.0 + (i as f32 * 0.37).sin() * 0.5)
            .collect();
        let quantised = quantise(&absmax);
        assert_eq!(quantised.nested_absmax.len(), 3);
        let mut out = vec![0.0; absmax.len()];
        for (i, out) in out.iter_mut().enumerate() {
            let fraction = dynamic_map()[usize::from(quantised.absmax[i])];
            *out = fraction * quantised.nested_absmax[i / NESTED_BLOCK] + quantised.offset;
            assert!(
                (*out - absmax[i]).abs() < 0.5 * 0.0075,
                "{i}: {out} {}",
                absmax[i]
            );
        }
    }

    #[test]
    fn the_mean_is_the_mean_for_any_length() {
        for n in [1, 2, 7, 8, 9, 31, 33, 100, 511, 4096, 40_001] {
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).cos() + 2.0).collect();
            let exact = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
            assert!((f64::from(mean(&values)) - exact).abs() < 1e-6, "{n}");
        }
    }
}
