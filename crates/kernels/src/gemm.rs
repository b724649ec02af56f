//! Matrix products on strided views of slices.

// The `gemm` crate takes raw pointers; the views here make sure that they are in bounds.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use gemm::Parallelism;

/// A matrix read from a slice.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Element `(i, j)` is `data[i * row_stride + j * col_stride]`.
    pub(crate) fn new(data: &'a [f32], [rows, cols]: [usize; 2], strides: [usize; 2]) -> Self {
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
    pub(crate) fn rows(data: &'a [f32], cols: usize) -> Self {
        Self::new(data, [data.len() / cols.max(1), cols], [cols, 1])
    }

    /// Number of rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// `len` rows from `start` on.
    pub(crate) fn row_range(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.rows, "rows out of bounds");
        let from = (start * self.row_stride).min(self.data.len());
        Self::new(
            &self.data[from..],
            [len, self.cols],
            [self.row_stride, self.col_stride],
        )
    }
}

/// A matrix written to a slice. No two elements share a place.
pub(crate) struct ViewMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is the only way to its elements, like the `&mut [f32]` it came from.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A row-major matrix that fills the slice.
    pub(crate) fn rows(data: &'a mut [f32], cols: usize) -> Self {
        Self {
            rows: data.len() / cols.max(1),
            data: data.as_mut_ptr(),
            cols,
            row_stride: cols,
            lifetime: PhantomData,
        }
    }

    /// Splits `[batch, seq, heads * dh]` into one `[seq, dh]` view for each batch and head.
    pub(crate) fn heads(
        data: &'a mut [f32],
        [batch, seq, heads, dh]: [usize; 4],
    ) -> Vec<ViewMut<'a>> {
        assert_eq!(
            data.len(),
            batch * seq * heads * dh,
            "heads must fill the slice"
        );
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
    pub(crate) fn row_range(&mut self, start: usize, len: usize) -> ViewMut<'_> {
        assert!(start + len <= self.rows, "rows out of bounds");
        ViewMut {
            data: self.data.wrapping_add(start * self.row_stride),
            rows: len,
            cols: self.cols,
            row_stride: self.row_stride,
            lifetime: PhantomData,
        }
    }
}

/// `out = alpha * a b`.
pub(crate) fn assign(out: ViewMut<'_>, alpha: f32, a: View<'_>, b: View<'_>, threads: Parallelism) {
    product(out, 0.0, alpha, a, b, threads);
}

/// `out += alpha * a b`.
pub(crate) fn add(out: ViewMut<'_>, alpha: f32, a: View<'_>, b: View<'_>, threads: Parallelism) {
    product(out, 1.0, alpha, a, b, threads);
}

fn product(
    out: ViewMut<'_>,
    keep: f32,
    alpha: f32,
    a: View<'_>,
    b: View<'_>,
    threads: Parallelism,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions of a product must agree");
    assert_eq!([out.rows, out.cols], [a.rows, b.cols], "shape of a product");
    // SAFETY: every view's constructor checked that its last element is within its slice, `out`
    // is borrowed mutably and its elements are distinct, and the shapes agree.
    unsafe {
        gemm::gemm(
            out.rows,
            out.cols,
            a.cols,
            out.data,
            1,
            out.row_stride as isize,
            keep != 0.0,
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

fn check_bounds(len: usize, [rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) {
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
        assert!(
            last < len,
            "a {rows} x {cols} view reaches past {len} elements"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_transposed_and_strided_views_match_the_sums() {
        let a: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
        let b: Vec<f32> = (0..60).map(|i| (i as f32 * 0.3).cos()).collect();
        let left = View::new(&a[2..], [3, 5], [7, 2]);
        let right = View::new(&b, [4, 5], [11, 1]).t();
        let mut out = vec![1.0; 12];
        add(
            ViewMut::rows(&mut out, 4),
            2.0,
            left,
            right,
            Parallelism::None,
        );
        for i in 0..3 {
            for j in 0..4 {
                let sum: f32 = (0..5).map(|k| a[2 + i * 7 + k * 2] * b[j * 11 + k]).sum();
                assert!((out[i * 4 + j] - 1.0 - 2.0 * sum).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn head_views_write_each_its_own_columns() {
        let mut out = vec![0.0; 2 * 3 * 2 * 2];
        for (i, view) in ViewMut::heads(&mut out, [2, 3, 2, 2])
            .into_iter()
            .enumerate()
        {
            let ones = [1.0 + i as f32; 6];
            let one = [1.0; 1];
            let column = View::new(&ones, [3, 1], [1, 1]);
            let row = View::new(&one, [1, 2], [0, 0]);
            assign(view, 1.0, column, row, Parallelism::None);
        }
        let expected = [1., 1., 2., 2.]
            .repeat(3)
            .into_iter()
            .chain([3., 3., 4., 4.].repeat(3));
        assert!(out.iter().copied().eq(expected));
    }

    #[test]
    #[should_panic(expected = "reaches past")]
    fn a_view_past_the_end_of_its_slice_is_refused() {
        View::new(&[0.0; 9], [2, 5], [5, 1]);
    }
}
