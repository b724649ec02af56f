//! Matrix products on slices, some of whose rows lie apart.

// The `gemm` crate takes raw pointers; the views here make sure that they are in bounds.
#![allow(unsafe_code)]

use gemm::Parallelism;

/// A matrix read from a slice.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// A row-major matrix that fills the slice.
    pub(crate) fn rows(data: &'a [f32], width: usize) -> Self {
        Self {
            data,
            shape: [data.len() / width.max(1), width],
            strides: [width, 1],
        }
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> Self {
        let ([rows, cols], [row, col]) = (self.shape, self.strides);
        Self {
            shape: [cols, rows],
            strides: [col, row],
            ..self
        }
    }

    /// `len` columns of a row-major matrix, from `start` on.
    pub(crate) fn columns(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.shape[1], "columns out of bounds");
        let from = (start * self.strides[1]).min(self.data.len());
        Self {
            data: &self.data[from..],
            shape: [self.shape[0], len],
            ..self
        }
    }

    fn is_in_bounds(&self) -> bool {
        let [rows, cols] = self.shape;
        let [row, col] = self.strides;
        rows * cols == 0 || (rows - 1) * row + (cols - 1) * col < self.data.len()
    }
}

/// Some columns of a row-major matrix, to be written.
pub(crate) struct ViewMut<'a> {
    data: &'a mut [f32],
    shape: [usize; 2],
    row_stride: usize,
}

impl<'a> ViewMut<'a> {
    /// `len` columns from `start` on of a matrix of this width that fills the slice.
    pub(crate) fn columns(data: &'a mut [f32], width: usize, start: usize, len: usize) -> Self {
        assert!(start + len <= width, "columns out of bounds");
        let rows = data.len() / width.max(1);
        let from = start.min(data.len());
        Self {
            data: &mut data[from..],
            shape: [rows, len],
            row_stride: width,
        }
    }
}

/// `out += a b`, by all threads.
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn add(out: ViewMut<'_>, a: View<'_>, b: View<'_>) {
    let [rows, cols] = out.shape;
    assert_eq!(
        a.shape[1], b.shape[0],
        "inner dimensions of a product must agree"
    );
    assert_eq!([a.shape[0], b.shape[1]], [rows, cols], "shape of a product");
    assert!(
        a.is_in_bounds() && b.is_in_bounds(),
        "a factor reaches past its slice"
    );
    let written = View {
        data: out.data,
        shape: out.shape,
        strides: [out.row_stride, 1],
    };
    assert!(written.is_in_bounds(), "a product reaches past its slice");
    // SAFETY: the last element of each view was checked to lie within its slice, `out` is borrowed
    // mutably and its rows do not overlap (`columns`: len <= width), and the shapes agree.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            a.shape[1],
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            true,
            a.data.as_ptr(),
            a.strides[1] as isize,
            a.strides[0] as isize,
            b.data.as_ptr(),
            b.strides[1] as isize,
            b.strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_product_match_the_sums_and_leave_the_others_alone() {
        let a: Vec<f32> = (0..3 * 6).map(|i| (i as f32 * 0.7).sin()).collect();
        let b: Vec<f32> = (0..2 * 4).map(|i| (i as f32 * 0.3).cos()).collect();
        let mut out = vec![1.0; 3 * 5];
        let left = View::rows(&a, 6).columns(1, 4);
        add(
            ViewMut::columns(&mut out, 5, 2, 2),
            left,
            View::rows(&b, 4).t(),
        );
        for (i, row) in out.chunks(5).enumerate() {
            for (j, found) in row.iter().enumerate() {
                let product =
                    |c: usize| (0..4).map(|k| a[i * 6 + 1 + k] * b[c * 4 + k]).sum::<f32>();
                let expected = if (2..4).contains(&j) {
                    1.0 + product(j - 2)
                } else {
                    1.0
                };
                assert!((found - expected).abs() < 1e-5, "{i} {j}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "columns out of bounds")]
    fn columns_past_the_width_are_refused() {
        View::rows(&[0.0; 6], 3).columns(2, 2);
    }
}
