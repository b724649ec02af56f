//! Rotations from skew-symmetric matrices, as OFT and BOFT parametrise them, and inverses of small
//! matrices.

use burn::tensor::{Tensor, TensorData};

/// `(I - Q) (I + Q)^-1` of every skew-symmetric block, exact and with its exact gradient.
///
/// # Shapes
/// - q: `[blocks, size, size]`
/// - result: the same
pub(crate) fn cayley(q: Tensor<3>) -> Tensor<3> {
    let [_, size, _] = q.dims();
    let identity = identity(size, &q);
    (identity.clone() - q.clone()).matmul(inverse(q + identity))
}

/// The inverse of every block with its exact gradient. The symmetric part of each must be the
/// identity, or each a triangle with ones on the diagonal, so that elimination needs no exchange
/// of rows: every pivot is at least 1.
///
/// It is found on the host, where the blocks are small; one Newton step from it, which changes its
/// value by rounding only, carries the gradient: the derivative of `X (2 I - M X)` by `M` at
/// `X = M^-1` is that of the inverse.
pub(crate) fn inverse(matrix: Tensor<3>) -> Tensor<3> {
    let [_, size, _] = matrix.dims();
    let twice = identity(size, &matrix).mul_scalar(2.0);
    let inverse = inverted(matrix.clone());
    let step = twice - matrix.matmul(inverse.clone());
    inverse.matmul(step)
}

/// The Neumann series of the map of `-Q` in place of an inverse, as HF PEFT adds it up:
/// `I + 2 Q + 2 Q^2 + .. + Q^(terms - 1)` (3 terms are the same as 4), a rotation only up to the
/// order of the last term.
pub(crate) fn cayley_neumann(q: Tensor<3>, terms: usize) -> Tensor<3> {
    let [_, size, _] = q.dims();
    let mut sum = identity(size, &q).repeat_dim(0, q.dims()[0]);
    if terms > 1 {
        sum = sum + q.clone().mul_scalar(2.0);
    }
    if terms > 2 {
        let mut power = q.clone().matmul(q.clone());
        sum = sum + power.clone().mul_scalar(2.0);
        for _ in 3..terms.saturating_sub(1) {
            power = power.matmul(q.clone());
            sum = sum + power.clone().mul_scalar(2.0);
        }
        sum = sum + power.matmul(q);
    }
    sum
}

/// `[1, size, size]` on the device of another tensor.
fn identity(size: usize, like: &Tensor<3>) -> Tensor<3> {
    Tensor::<2>::eye(size, &like.device()).unsqueeze()
}

/// The inverse of every block as constants, where elimination needs no exchange of rows: as in
/// [`inverse`], or of a positive definite matrix.
pub(crate) fn inverted(matrix: Tensor<3>) -> Tensor<3> {
    let ([blocks, size, _], device) = (matrix.dims(), matrix.device());
    let data = matrix.detach().into_data().convert::<f32>();
    let values: Vec<f32> = data.try_to_vec().expect("converted to f32");
    let inverses: Vec<f32> = values
        .chunks(size * size)
        .flat_map(|block| eliminated(block, size))
        .collect();
    Tensor::from_data(TensorData::new(inverses, [blocks, size, size]), &device)
}

/// Gauss and Jordan's elimination in 64 bits.
fn eliminated(block: &[f32], size: usize) -> Vec<f32> {
    let mut left: Vec<f64> = block.iter().map(|value| f64::from(*value)).collect();
    let mut right = vec![0.0; size * size];
    (0..size).for_each(|i| right[i * size + i] = 1.0);
    for pivot in 0..size {
        let scale = 1.0 / left[pivot * size + pivot];
        for matrix in [&mut left, &mut right] {
            let row = &mut matrix[pivot * size..][..size];
            row.iter_mut().for_each(|value| *value *= scale);
        }
        for row in (0..size).filter(|row| *row != pivot) {
            let factor = left[row * size + pivot];
            for matrix in [&mut left, &mut right] {
                for column in 0..size {
                    matrix[row * size + column] -= factor * matrix[pivot * size + column];
                }
            }
        }
    }
    right.into_iter().map(|value| value as f32).collect()
}

/// The blocks of a block-diagonal matrix, each applied to its part of the last axis.
///
/// # Shapes
/// - x: `[batch, sequence, blocks * size]`
/// - blocks: `[blocks, size, size]`, or one block for every part
/// - result: as x
pub(crate) fn apply_blocks(x: Tensor<3>, blocks: Tensor<3>) -> Tensor<3> {
    let ([batch, seq, width], [_, size, _]) = (x.dims(), blocks.dims());
    let parts = x.reshape([batch * seq, width / size, size]).swap_dims(0, 1);
    let turned = parts.matmul(blocks).swap_dims(0, 1);
    turned.reshape([batch, seq, width])
}

/// The product of a block-diagonal matrix with another.
///
/// # Shapes
/// - matrix: `[blocks * size, d]`
/// - blocks: `[blocks, size, size]`, or one block for every part
/// - result: as the matrix
pub(crate) fn turned_rows(matrix: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let ([height, width], [_, size, _]) = (matrix.dims(), blocks.dims());
    let parts = matrix.reshape([height / size, size, width]);
    blocks.matmul(parts).reshape([height, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{device, largest};
    use peft_core::contract::random;

    fn skew() -> Tensor<3> {
        let any: Tensor<3> = random([3, 4, 4], &device());
        any.clone() - any.swap_dims(1, 2)
    }

    #[test]
    fn the_cayley_map_gives_rotations() {
        let rotation = cayley(skew().mul_scalar(5.0));
        let square = rotation.clone().matmul(rotation.swap_dims(1, 2));
        let identity = identity(4, &square);
        assert!(largest(square - identity) < 1e-4);
    }

    #[test]
    fn its_gradient_is_that_of_finite_differences() {
        let (weights, direction): (Tensor<3>, _) = (random([3, 4, 4], &device()), skew());
        let value = |q: Tensor<3>| (cayley(q) * weights.clone()).sum();
        let q = skew().detach().require_grad();
        let gradient = q.grad(&value(q.clone()).backward()).unwrap();
        let gradient = Tensor::from_data(gradient.into_data(), &device());
        let exact: f32 = (gradient * direction.clone()).sum().into_scalar();
        let at = |t: f32| -> f32 {
            value(q.clone().detach() + direction.clone().mul_scalar(t)).into_scalar()
        };
        let numeric = (at(5e-3) - at(-5e-3)) / 1e-2;
        assert!(
            (exact - numeric).abs() < 2e-2 * exact.abs().max(1.0),
            "{exact} {numeric}"
        );
    }

    #[test]
    fn the_series_approaches_the_exact_map_of_the_opposite_matrix() {
        let q = skew().mul_scalar(0.02);
        let error = |terms| largest(cayley_neumann(q.clone(), terms) - cayley(q.clone().neg()));
        assert!(error(5) < 1e-4 && error(5) < error(3));
        assert!(error(3) < error(2));
    }

    #[test]
    fn blocks_apply_to_their_parts_of_the_last_axis() {
        let (x, blocks): (Tensor<3>, Tensor<3>) =
            (random([2, 3, 12], &device()), random([3, 4, 4], &device()));
        let turned = apply_blocks(x.clone(), blocks.clone());
        for part in 0..3 {
            let expected = x
                .clone()
                .narrow(2, part * 4, 4)
                .matmul(blocks.clone().narrow(0, part, 1));
            assert!(largest(turned.clone().narrow(2, part * 4, 4) - expected) < 1e-5);
        }
        // x (R W) is (x R) W.
        let weight: Tensor<2> = random([12, 7], &device());
        let rows = x.matmul(turned_rows(weight.clone(), blocks).unsqueeze());
        assert!(largest(rows - turned.matmul(weight.unsqueeze())) < 1e-4);
    }
}
