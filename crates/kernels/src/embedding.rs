//! Rows of an embedding table.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IndexingUpdateOp, IntTensor};
use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::tensor::{Int, Tensor};

/// The rows of a table, as `select` along the first dimension gives them.
///
/// The gradient is added onto the one that the table has already: with a head tied to the table it
/// is as large as the table, and a second one for a few rows would be nearly all zeros.
///
/// # Shapes
///
/// - table: `[rows, d]`
/// - ids: `[n]`, each in `0..rows`
/// - result: `[n, d]`
pub fn embedding(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as EmbeddingOps>::embedding_rows(
        table.into_dispatch(),
        ids.into_dispatch(),
    ))
}

#[backend_extension(Autodiff, Flex, NdArray, Cube: cfg(feature = "cuda"))]
pub(crate) trait EmbeddingOps: Backend {
    /// The rows, differentiable.
    fn embedding_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        Self::float_select(table, 0, ids)
    }
}

impl EmbeddingOps for Flex {}
impl EmbeddingOps for NdArray {}

#[cfg(feature = "cuda")]
impl EmbeddingOps for burn::backend::Cube {}

#[derive(Debug)]
struct EmbeddingBackward;

impl<B: EmbeddingOps> Backward<B, 1> for EmbeddingBackward {
    /// The table, for its place among the gradients (there is no other way to take one out), and
    /// the rows that were taken. It counts as a use of the table, so a graph that is built and never
    /// run backward lives until the next one over the same table is.
    type State = (FloatTensor<Autodiff<B>>, IntTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (table, ids) = ops.state;
        let [node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        let Some(node) = node else { return };
        let so_far = grads.remove::<B>(&table).unwrap_or_else(|| {
            let table = table.into_primitive();
            B::float_zeros(table.shape(), &table.device(), table.dtype().into())
        });
        let sum = B::float_select_assign(so_far, 0, ids, grad, IndexingUpdateOp::Add);
        grads.register::<B>(node.id, sum);
    }
}

impl<B: EmbeddingOps, C: CheckpointStrategy> EmbeddingOps for Autodiff<B, C> {
    fn embedding_rows(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        let prep = EmbeddingBackward
            .prepare::<C>([table.node()])
            .compute_bound()
            .stateful();
        let rows =
            |table: FloatTensor<Self>| B::float_select(table.into_primitive(), 0, ids.clone());
        match prep {
            OpsKind::Tracked(prep) => prep.finish((table.clone(), ids.clone()), rows(table)),
            OpsKind::UnTracked(prep) => prep.finish(rows(table)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Case, leaf};

    fn ids(case: &Case) -> Tensor<1, Int> {
        Tensor::from_data([3, 0, 3, 4], &case.device)
    }

    #[test]
    fn rows_and_gradients_match_select_with_repeated_and_unused_rows() {
        for case in Case::all() {
            let table = case.leaf([5, 3], true);
            let fused = embedding(table.clone(), ids(&case));
            let plain = table.clone().select(0, ids(&case));
            testing::assert_same(&case, fused, plain, &[leaf(&table)], 1e-6);
        }
    }

    #[test]
    fn a_table_that_is_used_again_gets_the_sum_of_both_gradients() {
        for case in Case::all() {
            let table = case.leaf([5, 3], true);
            let tied = |rows: Tensor<2>| rows.matmul(table.clone().transpose());
            let fused = tied(embedding(table.clone(), ids(&case)));
            let plain = tied(table.clone().select(0, ids(&case)));
            testing::assert_same(&case, fused, plain, &[leaf(&table)], 1e-5);
        }
    }

    #[test]
    fn a_frozen_table_receives_no_gradient() {
        for case in Case::all() {
            let table = case.leaf([5, 3], false);
            assert!(!embedding(table, ids(&case)).is_require_grad());
        }
    }
}
