//! Copies of blocks of a matrix into the order a product reads them in.

// The transposing copy works on vectors through pointers; `assert`s measure the slices before.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;

use super::view::last;

/// Side of the squares that are transposed in registers.
const SIDE: usize = 16;
/// Floats that are copied at a time.
const VECTOR: usize = 16;

/// `out[r * stride + c] = src[r * from + c]`.
pub(super) fn straight(
    src: &[f32],
    from: usize,
    [rows, cols]: [usize; 2],
    out: &mut [f32],
    stride: usize,
) {
    // Vectors at a time, in line: rows of a panel are too short to be worth a call.
    for r in 0..rows {
        let (src, out) = (&src[r * from..][..cols], &mut out[r * stride..][..cols]);
        let (vectors, rest) = src.as_chunks::<VECTOR>();
        let (out_vectors, out_rest) = out.as_chunks_mut::<VECTOR>();
        for (out, vector) in out_vectors.iter_mut().zip(vectors) {
            *out = *vector;
        }
        out_rest.copy_from_slice(rest);
    }
}

/// `out[r * stride + c] = src[r * strides[0] + c * strides[1]]`.
pub(super) fn scattered(
    src: &[f32],
    strides: [usize; 2],
    [rows, cols]: [usize; 2],
    out: &mut [f32],
    stride: usize,
) {
    for r in 0..rows {
        for (c, out) in out[r * stride..][..cols].iter_mut().enumerate() {
            *out = src[r * strides[0] + c * strides[1]];
        }
    }
}

/// Copies a block transposed: `out[r * stride + c] = src[c * from + r]`.
///
/// # Panics
/// If the block is not within both slices.
pub fn transposed(
    src: &[f32],
    from: usize,
    [rows, cols]: [usize; 2],
    out: &mut [f32],
    stride: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let fits = |len: usize, shape, stride| last(shape, [stride, 1]).is_some_and(|last| last < len);
    assert!(
        fits(src.len(), [cols, rows], from),
        "a block reaches past its matrix"
    );
    assert!(
        fits(out.len(), [rows, cols], stride),
        "a block reaches past its copy"
    );
    let side = if has_avx512() { SIDE } else { usize::MAX };
    let whole = |n: usize| n / side * side;
    for c in (0..whole(cols)).step_by(SIDE) {
        for r in (0..whole(rows)).step_by(SIDE) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the square lies within both slices, as asserted above, and only a processor
            // with AVX-512 has whole squares.
            unsafe {
                let src = src.as_ptr().add(c * from + r);
                square(src, from, out.as_mut_ptr().add(r * stride + c), stride);
            }
        }
    }
    let mut edge = |rows: core::ops::Range<usize>, cols: core::ops::Range<usize>| {
        for c in cols {
            for r in rows.clone() {
                out[r * stride + c] = src[c * from + r];
            }
        }
    };
    edge(whole(rows)..rows, 0..whole(cols));
    edge(0..rows, whole(cols)..cols);
}

/// Whether the processor has the instructions that the tiles and squares use.
pub(super) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Transposes 16 x 16 elements.
///
/// # Safety
/// 16 rows of 16 may be read from `src` and written to `out`; the processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn square(src: *const f32, from: usize, out: *mut f32, stride: usize) {
    // SAFETY: the caller vouches for both pointers.
    unsafe {
        let mut r = [_mm512_setzero_ps(); SIDE];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm512_loadu_ps(src.add(i * from));
        }
        // Within each lane of four: 2 x 2, then 4 x 4.
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let pd = |a, b, high| {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            _mm512_castpd_ps(match high {
                false => _mm512_unpacklo_pd(a, b),
                true => _mm512_unpackhi_pd(a, b),
            })
        };
        for g in 0..4 {
            let i = 4 * g;
            r[i] = pd(t[i], t[i + 2], false);
            r[i + 1] = pd(t[i], t[i + 2], true);
            r[i + 2] = pd(t[i + 1], t[i + 3], false);
            r[i + 3] = pd(t[i + 1], t[i + 3], true);
        }
        // Then the lanes: `r[4 g + j]` holds, in lane l, row `4 l + j` of the columns `4 g ..`.
        for j in 0..4 {
            let even = _mm512_shuffle_f32x4::<0x88>(r[j], r[4 + j]);
            let odd = _mm512_shuffle_f32x4::<0xdd>(r[j], r[4 + j]);
            let even_high = _mm512_shuffle_f32x4::<0x88>(r[8 + j], r[12 + j]);
            let odd_high = _mm512_shuffle_f32x4::<0xdd>(r[8 + j], r[12 + j]);
            let rows = [
                _mm512_shuffle_f32x4::<0x88>(even, even_high),
                _mm512_shuffle_f32x4::<0x88>(odd, odd_high),
                _mm512_shuffle_f32x4::<0xdd>(even, even_high),
                _mm512_shuffle_f32x4::<0xdd>(odd, odd_high),
            ];
            for (lane, row) in rows.into_iter().enumerate() {
                _mm512_storeu_ps(out.add((4 * lane + j) * stride), row);
            }
        }
    }
}
