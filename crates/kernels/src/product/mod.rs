//! Matrix products on strided views of slices, and on matrices that are decoded as they are read.

// The `gemm` crate takes raw pointers; the views make sure that they are in bounds.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod blocked;
mod copy;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;
mod view;

use core::ops::Range;
use gemm::Parallelism;

pub use copy::transposed;
pub use view::{View, ViewMut};

/// A matrix that can be read block by block: values in memory, or codes that stand for them.
pub trait Blocks: Sync {
    /// Number of rows and columns.
    fn shape(&self) -> [usize; 2];

    /// Copies a block to rows that lie `stride` apart in `out`. It must not compute a product, since
    /// it runs inside of one.
    fn copy(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], stride: usize);

    /// The values, if they lie in memory.
    fn as_view(&self) -> Option<View<'_>> {
        None
    }
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// What stands in the result.
    Out,
    /// The same row for all rows of the result: a bias.
    Row(&'a [f32]),
}

/// `out = start + left right`, by all threads.
///
/// # Panics
/// If shapes do not fit together.
pub fn multiply(out: ViewMut<'_>, start: Start<'_>, left: View<'_>, right: &dyn Blocks) {
    check([out.rows, out.cols], start, left, right);
    #[cfg(target_arch = "x86_64")]
    if blocked::suits(left.shape(), right.shape()) {
        return blocked::product(out, start, left, right);
    }
    match right.as_view() {
        Some(right) => with_crate(out, start, left, right),
        None => decoded(out, start, left, right),
    }
}

/// `start + left right` as a new row-major matrix, by all threads.
///
/// # Panics
/// As [`multiply`]; `start` cannot be what stands in the result.
pub fn product(start: Start<'_>, left: View<'_>, right: &dyn Blocks) -> Vec<f32> {
    assert!(
        !matches!(start, Start::Out),
        "a new matrix has no content yet"
    );
    let shape = [left.rows, right.shape()[1]];
    let len = shape[0]
        .checked_mul(shape[1])
        .expect("a result that fits into memory");
    let mut out = Vec::with_capacity(len);
    // SAFETY: the capacity is that of the view, and with this start nothing of it is read; all of
    // it has been written when the length is set.
    unsafe {
        multiply(
            ViewMut::unwritten(out.as_mut_ptr(), shape),
            start,
            left,
            right,
        );
        out.set_len(len);
    }
    out
}

/// `out = alpha * left right`, by this thread alone.
pub(crate) fn assign_here(out: ViewMut<'_>, alpha: f32, left: View<'_>, right: View<'_>) {
    here(out, Start::Zero, alpha, left, right);
}

/// `out += alpha * left right`, by this thread alone.
pub(crate) fn add_here(out: ViewMut<'_>, alpha: f32, left: View<'_>, right: View<'_>) {
    here(out, Start::Out, alpha, left, right);
}

fn here(out: ViewMut<'_>, start: Start<'_>, alpha: f32, left: View<'_>, right: View<'_>) {
    check([out.rows, out.cols], start, left, &right);
    #[cfg(target_arch = "x86_64")]
    if blocked::suits(left.shape(), right.shape()) {
        return blocked::product_here(out, start, alpha, left, &right);
    }
    let add = matches!(start, Start::Out);
    gemm_crate(out, add, alpha, left, right, Parallelism::None);
}

fn check(out: [usize; 2], start: Start<'_>, left: View<'_>, right: &dyn Blocks) {
    let right = right.shape();
    assert_eq!(
        left.cols, right[0],
        "inner dimensions of a product must agree"
    );
    assert_eq!(out, [left.rows, right[1]], "shape of a product");
    if let Start::Row(row) = start {
        assert_eq!(
            row.len(),
            right[1],
            "length of the row a product starts from"
        );
    }
}

/// By the `gemm` crate.
fn with_crate(mut out: ViewMut<'_>, start: Start<'_>, left: View<'_>, right: View<'_>) {
    check([out.rows, out.cols], start, left, &right);
    if let Start::Row(row) = start {
        out.fill_rows(row);
    }
    let add = !matches!(start, Start::Zero);
    gemm_crate(out, add, 1.0, left, right, Parallelism::Rayon(0));
}

/// Rows of a matrix in codes that are decoded at a time.
const DECODED_ROWS: usize = 256;

/// By the `gemm` crate, over a part of the right matrix at a time.
fn decoded(mut out: ViewMut<'_>, start: Start<'_>, left: View<'_>, right: &dyn Blocks) {
    let [depth, cols] = right.shape();
    let mut part = vec![0.0; DECODED_ROWS.min(depth) * cols];
    let mut start = start;
    for first in (0..depth.max(1)).step_by(DECODED_ROWS) {
        let rows = DECODED_ROWS.min(depth - first);
        let part = &mut part[..rows * cols];
        right.copy(first..first + rows, 0..cols, part, cols);
        let left = left.col_range(first, rows);
        let all = out.rows;
        with_crate(
            out.row_range(0, all),
            start,
            left,
            View::new(part, [rows, cols], [cols, 1]),
        );
        start = Start::Out;
    }
}

fn gemm_crate(
    out: ViewMut<'_>,
    add: bool,
    alpha: f32,
    a: View<'_>,
    b: View<'_>,
    threads: Parallelism,
) {
    let keep = if add { 1.0 } else { 0.0 };
    // SAFETY: every view's constructor checked that its last element is within its slice, `out`
    // is borrowed mutably and its elements are distinct, and the caller checked that shapes agree.
    unsafe {
        gemm::gemm(
            out.rows,
            out.cols,
            a.cols,
            out.data,
            1,
            out.row_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            keep,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}
