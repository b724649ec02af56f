//! The discrete Fourier transform of a matrix.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::Tensor;
use rayon::prelude::*;
use realfft::RealFftPlanner;
use rustfft::FftPlanner;
use rustfft::num_complex::{Complex, Complex32};

use crate::{buffer, flex};

/// The real part of the two-dimensional discrete Fourier transform of a real matrix:
/// `y[i, o] = sum over v, u of x[v, u] cos(2 pi (v i / m + u o / n))`, not divided by anything, which is
/// that of the inverse transform as well.
///
/// # Shapes
///
/// - x and result: `[m, n]`
pub fn real_dft2(x: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as DftOps>::real_dft2(x.into_dispatch()))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait DftOps: Backend {
    /// The transform, differentiable.
    fn real_dft2(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::<Self>(x)
    }
}

/// The operation as products with matrices of cosines and sines:
/// `cos(a + b) = cos a cos b - sin a sin b`.
fn composed<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [m, n] = [x.shape()[0], x.shape()[1]];
    let wave = |size: usize, of: fn(f64) -> f64| {
        let turn = core::f64::consts::TAU / size as f64;
        let values: Vec<f64> = (0..size).map(|at| of(turn * at as f64)).collect();
        let places = (0..size * size).map(|at| at / size * (at % size) % size);
        let table: Vec<f64> = places.map(|place| values[place]).collect();
        let table = burn::tensor::TensorData::new(table, [size, size]);
        B::float_from_data(table.convert_dtype(x.dtype()), &x.device())
    };
    let part = |of: fn(f64) -> f64| {
        let rows = B::float_matmul(wave(m, of), x.clone());
        B::float_matmul(rows, wave(n, of))
    };
    B::float_sub(part(f64::cos), part(f64::sin))
}

impl DftOps for NdArray {}

#[cfg(feature = "cuda")]
impl DftOps for burn::backend::Cube {}

impl DftOps for Flex {
    fn real_dft2(x: FlexTensor) -> FlexTensor {
        if !flex::all_f32(&[&x]) || x.layout().num_elements() == 0 {
            return composed::<Self>(x);
        }
        let x = flex::contiguous(x);
        let shape = x.layout().shape().clone();
        flex::tensor(fast(flex::slice(&x), flex::rows(&shape)), shape)
    }
}

/// Columns or rows that a thread takes at a time, so that it uses whole cache lines of what it reads.
const TOGETHER: usize = 16;

/// The transform by fast ones: along the rows, whose spectra are kept as far as they do not mirror
/// themselves, then along those columns. The other columns' real parts are theirs turned around.
fn fast(x: &[f32], [m, n]: [usize; 2]) -> Vec<f32> {
    let half = n / 2 + 1;
    let spectra = along_rows(x, n);
    let columns = along_columns(&spectra, m, half);
    buffer::fill_parts(m * n, TOGETHER * n, |start, rows| {
        let first = start / n;
        for o in 0..n {
            let column = &columns[o.min(n - o) * m..][..m];
            for (at, row) in rows.chunks_exact_mut(n).enumerate() {
                let i = first + at;
                row[o] = if o < half {
                    column[i]
                } else {
                    column[(m - i) % m]
                };
            }
        }
    })
}

/// The first half of the spectrum of every row of `n` values.
fn along_rows(x: &[f32], n: usize) -> Vec<Complex32> {
    let plan = RealFftPlanner::new().plan_fft_forward(n);
    let half = n / 2 + 1;
    let mut spectra = vec![Complex::default(); x.len() / n * half];
    let buffers = || (plan.make_input_vec(), plan.make_scratch_vec());
    spectra
        .par_chunks_mut(half)
        .zip(x.par_chunks(n))
        .for_each_init(buffers, |(input, scratch), (spectrum, row)| {
            input.copy_from_slice(row);
            let done = plan.process_with_scratch(input, spectrum, scratch);
            done.expect("buffers of the plan's own lengths");
        });
    spectra
}

/// The real parts of the transforms of all columns of `[m, half]`, one column behind the other.
fn along_columns(spectra: &[Complex32], m: usize, half: usize) -> Vec<f32> {
    let plan = FftPlanner::new().plan_fft_forward(m);
    buffer::fill_parts(half * m, TOGETHER * m, |start, out| {
        let (first, count) = (start / m, out.len() / m);
        let mut group = vec![Complex::default(); count * m];
        for (i, row) in spectra.chunks_exact(half).enumerate() {
            for (at, value) in row[first..first + count].iter().enumerate() {
                group[at * m + i] = *value;
            }
        }
        plan.process(&mut group);
        for (place, value) in out.iter_mut().zip(&group) {
            *place = value.re;
        }
    })
}

#[derive(Debug)]
struct DftBackward;

impl<B: DftOps> Backward<B, 1> for DftBackward {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            // The transform is its own transpose.
            grads.register::<B>(node.id, B::real_dft2(grad));
        }
    }
}

impl<B: DftOps, C: CheckpointStrategy> DftOps for Autodiff<B, C> {
    fn real_dft2(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = DftBackward.prepare::<C>([x.node()]).compute_bound();
        let x = x.into_primitive();
        match prep.stateful() {
            OpsKind::Tracked(prep) => prep.finish((), B::real_dft2(x)),
            OpsKind::UnTracked(prep) => prep.finish(B::real_dft2(x)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Case, leaf};
    use crate::{plain, real_dft2};

    #[test]
    fn values_and_gradients_match_the_definition_for_any_lengths() {
        for case in Case::all() {
            for shape in [[1, 1], [1, 6], [5, 1], [7, 4], [12, 9], [33, 50]] {
                let x = case.leaf(shape, true);
                let leaves = [leaf(&x)];
                let (fused, plain) = (real_dft2(x.clone()), plain::real_dft2(x));
                testing::assert_same(&case, fused, plain, &leaves, 2e-6);
            }
        }
    }

    #[test]
    fn no_gradient_flows_where_none_is_asked_for() {
        for case in Case::all() {
            assert!(!real_dft2(case.leaf([4, 6], false)).is_require_grad());
        }
    }
}
