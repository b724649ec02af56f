//! Tables of the values that 4-bit codes stand for.

/// The 16 values that a 4-bit code stands for, as fractions of a block's largest magnitude.
#[derive(Debug, PartialEq)]
pub struct CodeBook {
    /// Name in files and tables: `nf4`, `fp4`.
    pub name: &'static str,
    /// The value of every code.
    pub values: [f32; 16],
    /// Codes by ascending value.
    order: [u8; 16],
    /// Midpoints of neighbouring values; a number on a midpoint belongs to the lower value.
    bounds: [f32; 15],
}

/// 4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314): quantiles of the normal
/// distribution, scaled to [-1, 1], with an exact zero.
pub static NF4: CodeBook = CodeBook::new(
    "nf4",
    [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ],
);

/// 4-bit floating point as bitsandbytes has it: a sign, and one of eight magnitudes that are no
/// pattern of exponent and mantissa bits. Codes 0 and 8 are both zero.
pub static FP4: CodeBook = CodeBook::new("fp4", {
    const MAGNITUDES: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = MAGNITUDES[i] / 12.0;
        // Not `-values[0]`: the library's second zero has no sign either.
        values[i + 8] = 0.0 - values[i];
        i += 1;
    }
    values
});

/// The table of this name.
pub fn by_name(name: &str) -> Option<&'static CodeBook> {
    [&NF4, &FP4].into_iter().find(|book| book.name == name)
}

impl CodeBook {
    /// A table of these values, in any order; of equal values the first code is used.
    pub const fn new(name: &'static str, values: [f32; 16]) -> Self {
        let order = ascending(&values);
        let mut bounds = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            bounds[i] = (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.0;
            i += 1;
        }
        Self {
            name,
            values,
            order,
            bounds,
        }
    }

    /// Replaces each fraction's slot in `codes` by the code whose value is nearest.
    ///
    /// # Panics
    /// If the two slices differ in length.
    pub fn nearest(&self, fractions: &[f32], codes: &mut [u8]) {
        assert_eq!(fractions.len(), codes.len(), "one code for each fraction");
        codes.fill(0);
        // Bound by bound rather than value by value: the inner loop is then free of branches.
        for bound in self.bounds {
            for (rank, x) in codes.iter_mut().zip(fractions) {
                *rank += u8::from(*x > bound);
            }
        }
        codes
            .iter_mut()
            .for_each(|rank| *rank = self.order[usize::from(*rank)]);
    }

    /// The two values that each byte stands for, its high nibble first.
    pub fn pairs(&self) -> [[f32; 2]; 256] {
        std::array::from_fn(|byte| [self.values[byte >> 4], self.values[byte & 15]])
    }
}

/// Insertion sort of the codes by value; equal values keep the order of their codes.
const fn ascending(values: &[f32; 16]) -> [u8; 16] {
    let mut order = [0; 16];
    let mut i = 0;
    while i < 16 {
        let mut place = i;
        while place > 0 && values[order[place - 1] as usize] > values[i] {
            order[place] = order[place - 1];
            place -= 1;
        }
        order[place] = i as u8;
        i += 1;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest(book: &CodeBook, x: f32) -> u8 {
        let mut code = [0];
        book.nearest(&[x], &mut code);
        code[0]
    }

    #[test]
    fn the_thresholds_are_those_of_the_cuda_kernel_of_bitsandbytes() {
        // The constants of `dQuantizeNF4` in csrc/kernels.cu.
        #[rustfmt::skip]
        #[allow(clippy::excessive_precision)]
        let thresholds: [f32; 15] = [
            -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
            -0.23460740596055984, -0.13791173323988914, -0.045525018125772476,
            0.03979014977812767, 0.1202552504837513, 0.2035212516784668, 0.2920137718319893,
            0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
        ];
        // The kernel's literals were rounded on the way; each is the midpoint or its neighbour.
        for (bound, threshold) in NF4.bounds.iter().zip(thresholds) {
            assert!(
                (bound - threshold).abs() <= f32::EPSILON / 2.0,
                "{bound} {threshold}"
            );
        }
    }

    #[test]
    fn every_value_is_its_own_nearest_and_a_tie_goes_to_the_lower() {
        for (code, value) in NF4.values.iter().enumerate() {
            assert_eq!(usize::from(nearest(&NF4, *value)), code);
        }
        for (code, bound) in NF4.bounds.iter().enumerate() {
            assert_eq!(usize::from(nearest(&NF4, *bound)), code);
            assert_eq!(usize::from(nearest(&NF4, bound.next_up())), code + 1);
        }
    }

    #[test]
    fn a_table_need_not_be_sorted() {
        for x in [-1.0, -0.7, -0.4, -0.2, 0.004, 0.2, 0.3, 0.45, 0.9f32] {
            let best = FP4
                .values
                .iter()
                .map(|v| (x - v).abs())
                .fold(f32::MAX, f32::min);
            let chosen = FP4.values[usize::from(nearest(&FP4, x))];
            assert_eq!((x - chosen).abs(), best, "{x}");
        }
    }

    #[test]
    fn of_the_two_zeros_of_fp4_each_takes_its_side() {
        assert_eq!(nearest(&FP4, 0.0), 0);
        assert_eq!(nearest(&FP4, -0.001), 0);
        assert_eq!(nearest(&FP4, 0.001), 8);
    }
}
