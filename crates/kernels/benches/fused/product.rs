//! Matrix products against those of the `gemm` crate.

// That crate takes raw pointers.
#![allow(unsafe_code)]

use criterion::Criterion;
use gemm::Parallelism;
use kernels::product::{Start, View, ViewMut, multiply};

use crate::{ROWS, VOCABULARY, WIDTH, compare, random};

/// A weight stored as it is multiplied, one stored as in PyTorch's linear layers, and the head's,
/// which is the transposed embedding.
pub(crate) fn products(criterion: &mut Criterion) {
    for (name, cols, transposed) in [
        ("product 1024 x 768 x 2304", 3 * WIDTH, false),
        ("product 1024 x 768 x 2304, transposed", 3 * WIDTH, true),
        ("product 1024 x 768 x 50257, transposed", VOCABULARY, true),
    ] {
        let strides = if transposed { [1, WIDTH] } else { [cols, 1] };
        product(criterion, name, cols, strides);
    }
}

/// The product alone, into memory that is there already; plain is that of the `gemm` crate.
fn product(criterion: &mut Criterion, name: &str, cols: usize, strides: [usize; 2]) {
    let (left, right) = (values(ROWS * WIDTH), values(WIDTH * cols));
    let [mut ours, mut theirs] = [(); 2].map(|()| vec![0.0; ROWS * cols]);
    let fused = || {
        let (out, left) = (ViewMut::rows(&mut ours, cols), View::rows(&left, WIDTH));
        let right = View::new(&right, [WIDTH, cols], strides);
        multiply(out, Start::Zero, left, &right);
    };
    let plain = || gemm_crate(&mut theirs, &left, &right, strides);
    compare(criterion, name, fused, plain);
}

/// `left` is `ROWS x WIDTH` and row-major, like `out`.
fn gemm_crate(out: &mut [f32], left: &[f32], right: &[f32], strides: [usize; 2]) {
    let cols = out.len() / ROWS;
    let [row_stride, col_stride] = strides.map(|stride| stride as isize);
    assert_eq!([left.len(), right.len()], [ROWS * WIDTH, WIDTH * cols]);
    // SAFETY: the slices have as many elements as the matrices, which fill them in either layout.
    unsafe {
        gemm::gemm(
            ROWS,
            cols,
            WIDTH,
            out.as_mut_ptr(),
            1,
            cols as isize,
            false,
            left.as_ptr(),
            1,
            WIDTH as isize,
            right.as_ptr(),
            col_stride,
            row_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

fn values(len: usize) -> Vec<f32> {
    let values = random([len]).into_data().try_to_vec();
    values.expect("32-bit floats")
}
