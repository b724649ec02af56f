//! Matrices in slices, in whatever strides they have.

// A view to be written is a pointer, since several may share a slice.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ops::Range;

use super::{Blocks, copy};

/// A matrix read from a slice.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> View<'a> {
    /// Element `(i, j)` is `data[i * row_stride + j * col_stride]`.
    pub fn new(data: &'a [f32], [rows, cols]: [usize; 2], strides: [usize; 2]) -> Self {
        check_bounds(data.len(), [rows, cols], strides);
        let [row_stride, col_stride] = strides;
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
    }

    /// A row-major matrix that fills the slice.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self::new(data, [data.len() / cols.max(1), cols], [cols, 1])
    }

    /// Number of rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Copies a block so that each of its columns becomes a row of `out`.
    pub(super) fn copy_transposed(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        self.t().copy(cols, rows, out, stride);
    }

    /// `len` columns from `start` on.
    pub fn col_range(self, start: usize, len: usize) -> Self {
        self.t().row_range(start, len).t()
    }

    /// `len` rows from `start` on.
    pub fn row_range(self, start: usize, len: usize) -> Self {
        assert!(
            len <= self.rows && start <= self.rows - len,
            "rows out of bounds"
        );
        let from = (start * self.row_stride).min(self.data.len());
        Self::new(
            &self.data[from..],
            [len, self.cols],
            [self.row_stride, self.col_stride],
        )
    }
}

impl Blocks for View<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn copy(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], stride: usize) {
        let from =
            (rows.start * self.row_stride + cols.start * self.col_stride).min(self.data.len());
        let src = &self.data[from..];
        let size = [rows.len(), cols.len()];
        match [self.row_stride, self.col_stride] {
            [from, 1] => copy::straight(src, from, size, out, stride),
            [1, from] => copy::transposed(src, from, size, out, stride),
            strides => copy::scattered(src, strides, size, out, stride),
        }
    }

    fn as_view(&self) -> Option<View<'_>> {
        Some(*self)
    }
}

/// A matrix written to a slice. No two elements share a place.
pub struct ViewMut<'a> {
    pub(super) data: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is the only way to its elements, like the `&mut [f32]` it came from.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A row-major matrix that fills the slice.
    pub fn rows(data: &'a mut [f32], cols: usize) -> Self {
        Self {
            rows: data.len() / cols.max(1),
            data: data.as_mut_ptr(),
            cols,
            row_stride: cols,
            lifetime: PhantomData,
        }
    }

    /// Writes the same row to all rows.
    pub(super) fn fill_rows(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.cols, "length of a row");
        for i in 0..self.rows {
            // SAFETY: the row lies within the view, which nobody else writes.
            unsafe {
                let place = self.data.add(i * self.row_stride);
                core::ptr::copy_nonoverlapping(row.as_ptr(), place, self.cols);
            }
        }
    }

    /// A row-major matrix at memory that nobody has written yet.
    ///
    /// # Safety
    /// `rows * cols` elements at `data` may be written while the view lives, and nobody reads them.
    pub(super) unsafe fn unwritten(data: *mut f32, [rows, cols]: [usize; 2]) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride: cols,
            lifetime: PhantomData,
        }
    }

    /// Splits `[batch, seq, heads * dh]` into one `[seq, dh]` view for each batch and head.
    pub fn heads(data: &'a mut [f32], [batch, seq, heads, dh]: [usize; 4]) -> Vec<ViewMut<'a>> {
        let len = [seq, heads, dh]
            .iter()
            .try_fold(batch, |len, n| len.checked_mul(*n));
        assert_eq!(Some(data.len()), len, "heads must fill the slice");
        let start = data.as_mut_ptr();
        let view = |i: usize| {
            let offset = i / heads * seq * heads * dh + i % heads * dh;
            // An empty view may start past the end; it must not be computed as a pointer inside.
            let data = start.wrapping_add(offset);
            Self {
                data,
                rows: seq,
                cols: dh,
                row_stride: heads * dh,
                lifetime: PhantomData,
            }
        };
        (0..batch * heads).map(view).collect()
    }

    /// `len` rows from `start` on.
    pub fn row_range(&mut self, start: usize, len: usize) -> ViewMut<'_> {
        assert!(
            len <= self.rows && start <= self.rows - len,
            "rows out of bounds"
        );
        ViewMut {
            data: self.data.wrapping_add(start * self.row_stride),
            rows: len,
            cols: self.cols,
            row_stride: self.row_stride,
            lifetime: PhantomData,
        }
    }
}

/// Place of the last element, if it is a number at all.
pub(super) fn last([rows, cols]: [usize; 2], [row, col]: [usize; 2]) -> Option<usize> {
    let rows = (rows.checked_sub(1)?).checked_mul(row)?;
    let cols = (cols.checked_sub(1)?).checked_mul(col)?;
    rows.checked_add(cols)
}

fn check_bounds(len: usize, [rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) {
    if rows > 0 && cols > 0 {
        assert!(
            last([rows, cols], [row_stride, col_stride]).is_some_and(|last| last < len),
            "a {rows} x {cols} view reaches past {len} elements"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "reaches past")]
    fn a_view_past_the_end_of_its_slice_is_refused() {
        View::new(&[0.0; 9], [2, 5], [5, 1]);
    }

    #[test]
    #[should_panic(expected = "reaches past")]
    fn a_view_whose_size_wraps_around_is_refused() {
        View::new(&[0.0; 9], [1 << 33, 2], [1 << 31, 1]);
    }

    #[test]
    #[should_panic(expected = "rows out of bounds")]
    fn a_range_of_rows_that_wraps_around_is_refused() {
        let mut data = [0.0; 4];
        ViewMut::rows(&mut data, 2).row_range(usize::MAX, 1);
    }
}
