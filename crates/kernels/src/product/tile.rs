//! The innermost loop of a product: one tile of the result in the registers of AVX-512.

// Vector loads and stores go through pointers; `fits` says what a caller must have checked.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::Start;

/// Rows of a tile.
pub(super) const ROWS: usize = 8;
/// Columns of a tile: three vectors. 8 x 3 sums, 3 vectors of the right matrix and one of the left
/// fill the 32 registers but for a few.
pub(super) const COLS: usize = 48;

/// Rows of the left matrix that lie side by side in its copy: two tiles'.
pub(super) const SIDE_BY_SIDE: usize = 16;

/// One tile's operands: of the left matrix `depth` columns of [`SIDE_BY_SIDE`] values, of which the
/// first `rows` count; of the right matrix `depth` rows of [`COLS`], of which `cols` count.
pub(super) struct Tile<'a> {
    pub(super) left: &'a [f32],
    pub(super) panel: &'a [f32],
    pub(super) depth: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) alpha: f32,
    pub(super) start: Start<'a>,
}

impl Tile<'_> {
    fn fits(&self) -> bool {
        let row = match self.start {
            Start::Row(row) => row.len() >= self.cols,
            _ => true,
        };
        row && (1..=ROWS).contains(&self.rows)
            && (1..=COLS).contains(&self.cols)
            && self.left.len() + SIDE_BY_SIDE >= self.depth * SIDE_BY_SIDE + self.rows
            && self.panel.len() >= self.depth * COLS
    }

    /// Computes the tile into `out`, whose rows lie `out_stride` apart.
    ///
    /// # Safety
    /// The processor has AVX-512F, and `out` may be written at `rows` times `cols` places that
    /// nobody else touches meanwhile.
    pub(super) unsafe fn run(&self, out: *mut f32, out_stride: usize) {
        assert!(self.fits(), "operands of a tile are too short");
        macro_rules! by_rows {
            ($vectors:literal) => {
                match self.rows {
                    1 => tile::<1, $vectors>,
                    2 => tile::<2, $vectors>,
                    3 => tile::<3, $vectors>,
                    4 => tile::<4, $vectors>,
                    5 => tile::<5, $vectors>,
                    6 => tile::<6, $vectors>,
                    7 => tile::<7, $vectors>,
                    _ => tile::<ROWS, $vectors>,
                }
            };
        }
        let tile = match self.cols.div_ceil(16) {
            1 => by_rows!(1),
            2 => by_rows!(2),
            _ => by_rows!(3),
        };
        // SAFETY: `fits` holds, and the caller vouches for the processor and for `out`.
        unsafe { tile(self, out, out_stride) }
    }
}

/// Which of a vector's elements are among the first `cols` of the tile.
fn mask(cols: usize, vector: usize) -> __mmask16 {
    match cols.saturating_sub(vector * 16) {
        16.. => !0,
        left => (1 << left) - 1,
    }
}

/// # Safety
/// As [`Tile::run`]; `Tile::fits` holds, `M` is the number of rows and `V` that of vectors.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize, const V: usize>(t: &Tile<'_>, out: *mut f32, out_stride: usize) {
    // SAFETY: all reads are within the slices that `fits` measured, masked ones within `cols`;
    // all writes are where the caller allows them.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; M];
        let (mut a, mut b) = (t.left.as_ptr(), t.panel.as_ptr());
        let mut step = |a: *const f32, b: *const f32| {
            let mut right = [_mm512_setzero_ps(); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = _mm512_loadu_ps(b.add(v * 16));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(*a.add(m));
                for (sum, right) in sums.iter_mut().zip(&right) {
                    *sum = _mm512_fmadd_ps(left, *right, *sum);
                }
            }
        };
        // Four steps a turn: the counting costs no more than it must.
        for _ in 0..t.depth / 4 {
            for i in 0..4 {
                step(a.add(i * SIDE_BY_SIDE), b.add(i * COLS));
            }
            (a, b) = (a.add(4 * SIDE_BY_SIDE), b.add(4 * COLS));
        }
        for i in 0..t.depth % 4 {
            step(a.add(i * SIDE_BY_SIDE), b.add(i * COLS));
        }
        let alpha = _mm512_set1_ps(t.alpha);
        for v in 0..V {
            let mask = mask(t.cols, v);
            let row = match t.start {
                Start::Row(row) => _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(v * 16)),
                _ => _mm512_setzero_ps(),
            };
            for (m, sums) in sums.iter().enumerate() {
                let place = out.add(m * out_stride).wrapping_add(v * 16);
                let start = match t.start {
                    Start::Out => _mm512_maskz_loadu_ps(mask, place),
                    _ => row,
                };
                _mm512_mask_storeu_ps(place, mask, _mm512_fmadd_ps(alpha, sums[v], start));
            }
        }
    }
}
