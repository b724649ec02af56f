//! Low-rank parts of a weight.
//!
//! They are found on the CPU, in the same way whatever the model's device, so that an adapter that
//! was trained on one device is put back on another.

use burn::linalg;
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::Init;

use crate::lora::Factors;

/// Sweeps a singular value may take; LAPACK allows 6 per singular value and column, and few need 3.
const SWEEPS: usize = 100;
/// Directions sought beyond the rank, which the rounds of the search are the more exact for.
const OVERSAMPLING: usize = 8;
/// Matrices up to this width are decomposed whole: that takes a few milliseconds.
const SMALL: usize = 128;
/// Rounds of the search for the axes of wider ones. Eigenvalues are squares of what a weight's singular
/// values are, so that each round parts them further.
const ROUNDS: usize = 8;

/// The part of a matrix, `[d_in, d_out]`, that belongs to its `rank` largest singular values, the
/// roots of which go to both factors.
///
/// With `rounds`, the directions are sought by that many rounds of subspace iteration (Halko et al.
/// 2009) in place of the whole decomposition: the start is the same on every run, and nearly the
/// best.
pub fn principal(matrix: &Tensor<2>, rank: usize, rounds: Option<usize>) -> Factors {
    let device = matrix.device();
    let (u, s, vt) = decomposed(on_cpu(matrix), rank, rounds);
    let roots = s.narrow(0, 0, rank).sqrt();
    let a = u.narrow(1, 0, rank) * roots.clone().unsqueeze();
    let b = vt.narrow(0, 0, rank) * roots.unsqueeze_dim(1);
    factors(a, b, &device)
}

/// The directions of a symmetric matrix without negative eigenvalues that belong to its `count`
/// largest, `[d, count]`, and these eigenvalues, largest first. The largest entry of a direction is
/// positive, so that it is the same on every run.
pub(crate) fn axes(matrix: &Tensor<2>, count: usize) -> (Tensor<2>, Vec<f64>) {
    let device = matrix.device();
    let [width, _] = matrix.dims();
    let rounds = (width > SMALL).then_some(ROUNDS);
    let (u, s, _) = decomposed(on_cpu(matrix), count, rounds);
    let u = u.narrow(1, 0, count);
    let (most, least) = (u.clone().max_dim(0), u.clone().min_dim(0));
    let sign = (most + least).sign();
    // An entry as large on the other side leaves no sign.
    let sign = sign.clone().mask_fill(sign.equal_elem(0.0), 1.0);
    let values = s.narrow(0, 0, count).into_data().convert::<f64>();
    let axes = Tensor::from_data((u * sign).into_data(), &device);
    (axes, values.try_to_vec().expect("converted"))
}

/// At least the `rank` first singular values with their vectors, see [`principal`].
fn decomposed(
    matrix: Tensor<2>,
    rank: usize,
    rounds: Option<usize>,
) -> (Tensor<2>, Tensor<1>, Tensor<2>) {
    let [d_in, d_out] = matrix.dims();
    let width = rank + OVERSAMPLING;
    match rounds {
        Some(rounds) if width < d_in.min(d_out) => sought(matrix, width, rounds),
        _ => linalg::svd::<2, 1>(matrix, SWEEPS),
    }
}

/// The projection of a matrix, `[d_in, d_out]`, onto the space of its first `rank` rows: an
/// orthonormal basis of that space, and the matrix in it. This is the head of the QR decomposition
/// of the transposed matrix.
pub(crate) fn first_rows(matrix: &Tensor<2>, rank: usize) -> Factors {
    let device = matrix.device();
    let matrix = on_cpu(matrix);
    let (basis, _) = linalg::qr(matrix.clone().narrow(0, 0, rank).transpose(), true);
    let a = matrix.matmul(basis.clone());
    factors(a, basis.transpose(), &device)
}

fn sought(matrix: Tensor<2>, width: usize, rounds: usize) -> (Tensor<2>, Tensor<1>, Tensor<2>) {
    // Directions of its own seed: those of a trial's would have to be kept with the adapter.
    let [_, d_out] = matrix.dims();
    let drawn = Init::new(0, &matrix.device()).normal([d_out, width], 1.0);
    let mut q = basis(matrix.clone().matmul(drawn));
    for _ in 0..rounds {
        let across = basis(matrix.clone().transpose().matmul(q));
        q = basis(matrix.clone().matmul(across));
    }
    let (u, s, vt) = linalg::svd::<2, 1>(q.clone().transpose().matmul(matrix), SWEEPS);
    (q.matmul(u), s, vt)
}

/// An orthonormal basis that spans the columns of a matrix, `[rows, columns]`, by Gram and Schmidt's
/// method, twice for each column. In a search for the axes of 512 features, most of the time went to
/// Burn's QR decomposition.
fn basis(matrix: Tensor<2>) -> Tensor<2> {
    let ([rows, columns], device) = (matrix.dims(), matrix.device());
    let values = matrix.transpose().into_data().convert::<f64>();
    let values: Vec<f64> = values.try_to_vec().expect("converted");
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut found: Vec<Vec<f64>> = Vec::new();
    // Where a column adds nothing to those before it, a unit vector that does takes its place.
    let unit = |at: usize| (0..rows).map(|i| f64::from(u8::from(i == at))).collect();
    let mut spare = (0..rows).map(unit);
    for column in values.chunks(rows) {
        let mut column = column.to_vec();
        loop {
            let before = dot(&column, &column).sqrt();
            for _ in 0..2 {
                for other in &found {
                    let along = dot(&column, other);
                    column
                        .iter_mut()
                        .zip(other)
                        .for_each(|(c, o)| *c -= along * o);
                }
            }
            let length = dot(&column, &column).sqrt();
            if length > 1e-9 * before {
                column.iter_mut().for_each(|value| *value /= length);
                break found.push(column);
            }
            match spare.next() {
                Some(unit) => column = unit,
                // Not finite: nothing is orthogonal to it.
                None => break found.push(column),
            }
        }
    }
    let values: Vec<f32> = found
        .concat()
        .into_iter()
        .map(|value| value as f32)
        .collect();
    let data = TensorData::new(values, [columns, rows]);
    Tensor::<2>::from_data(data, &device).transpose()
}

fn on_cpu(matrix: &Tensor<2>) -> Tensor<2> {
    let data = matrix.clone().detach().into_data().convert::<f32>();
    Tensor::from_data(data, &Device::flex())
}

fn factors(a: Tensor<2>, b: Tensor<2>, device: &Device) -> Factors {
    let moved = |factor: Tensor<2>| Tensor::from_data(factor.into_data(), device);
    Factors::new(moved(a), moved(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::largest;
    use peft_core::contract::random;

    /// A matrix of known singular values, largest first.
    fn matrix(d_in: usize, d_out: usize, values: &[f32]) -> Tensor<2> {
        let device = Device::flex();
        let basis = |width| {
            let (q, _) = linalg::qr(random([width, values.len()], &device), true);
            q
        };
        let values = Tensor::<1>::from_data(values, &device);
        (basis(d_in) * values.unsqueeze()).matmul(basis(d_out).transpose())
    }

    fn error(matrix: &Tensor<2>, part: &Factors) -> f32 {
        let rest = matrix.clone() - part.product();
        rest.square().sum().sqrt().into_scalar()
    }

    #[test]
    fn what_is_left_has_the_norm_of_the_smaller_singular_values() {
        for (d_in, d_out) in [(9, 9), (20, 7), (7, 20)] {
            let matrix = matrix(d_in, d_out, &[5.0, 4.0, 3.0, 2.0, 1.0]);
            let found = error(&matrix, &principal(&matrix, 3, None));
            assert!((found - 5f32.sqrt()).abs() < 1e-4, "{found}");
        }
    }

    #[test]
    fn both_factors_hold_the_roots_of_the_singular_values() {
        let part = principal(&matrix(8, 6, &[9.0, 4.0, 1.0]), 2, None);
        let squares = |factor: Tensor<2>, dim| factor.square().sum_dim(dim).into_data();
        let (a, b) = (squares(part.a.val(), 0), squares(part.b.val(), 1));
        let found: Vec<f32> = a.iter::<f32>().chain(b.iter::<f32>()).collect();
        for (found, expected) in found.iter().zip([9.0, 4.0, 9.0, 4.0]) {
            assert!((found - expected).abs() < 1e-4, "{found}");
        }
    }

    #[test]
    fn a_few_rounds_find_nearly_the_best_part_and_the_same_each_time() {
        let matrix = random([60, 40], &Device::flex());
        let best = error(&matrix, &principal(&matrix, 4, None));
        let (none, six) = (
            principal(&matrix, 4, Some(0)),
            principal(&matrix, 4, Some(6)),
        );
        let found = error(&matrix, &six);
        assert!(found < 1.002 * best && found <= error(&matrix, &none));
        let again = principal(&matrix, 4, Some(6));
        assert_eq!(again.a.val().into_data(), six.a.val().into_data());
    }

    #[test]
    fn a_basis_spans_the_columns_and_stays_whole_where_they_add_nothing() {
        let device = Device::flex();
        let columns = random([30, 4], &device);
        let twice = Tensor::cat(vec![columns.clone(), columns.clone()], 1);
        for (matrix, count) in [
            (columns.clone(), 4),
            (twice, 8),
            (Tensor::zeros([30, 3], &device), 3),
        ] {
            let q = basis(matrix.clone());
            let gram = q.clone().transpose().matmul(q.clone());
            assert!(largest(gram - Tensor::eye(count, &device)) < 1e-5);
            let within = q.clone().matmul(q.transpose().matmul(matrix.clone()));
            assert!(largest(within - matrix) < 1e-4);
        }
    }

    #[test]
    fn the_axes_are_the_directions_of_the_largest_eigenvalues_with_one_sign_each() {
        for width in [20, 150] {
            let device = Device::flex();
            let (basis, _) = linalg::qr(random([width, 5], &device), true);
            let values = Tensor::<1>::from_data([9.0, 4.0, 1.0, 0.5, 0.1], &device);
            let symmetric = (basis.clone() * values.unsqueeze()).matmul(basis.clone().transpose());
            let (found, eigenvalues) = axes(&symmetric, 3);
            for (found, expected) in eigenvalues.iter().zip([9.0, 4.0, 1.0]) {
                assert!((found - expected).abs() < 1e-4, "{found}");
            }
            let products = found.clone().transpose().matmul(basis.narrow(1, 0, 3));
            assert!(largest(products.abs() - Tensor::eye(3, &device)) < 1e-3);
            let largest_entry = found.clone().max_dim(0) - found.min_dim(0).neg();
            assert!(largest_entry.min().into_scalar::<f32>() >= 0.0);
        }
    }

    #[test]
    fn the_first_rows_are_taken_out_whole() {
        let matrix = random([9, 6], &Device::flex());
        let part = first_rows(&matrix, 2);
        let rest = matrix - part.product();
        assert!(largest(rest.clone().narrow(0, 0, 2)) < 1e-5);
        // What is left is orthogonal to the basis, which is orthonormal.
        let b = part.b.val();
        assert!(largest(rest.matmul(b.clone().transpose())) < 1e-5);
        let gram = b.clone().matmul(b.transpose());
        assert!(largest(gram - Tensor::eye(2, &Device::flex())) < 1e-5);
    }
}
