//! The variant whose blocks the base's weight takes part in.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{Pass, Proj, Reweighted, kernels};

/// A linear layer with a block for every few outputs, multiplied with the weight.
#[derive(Module, Debug)]
pub struct BatLinear {
    pub(super) base: Proj,
    /// `[d_out / rank, rank, rank]`, as PEFT lays them out
    pub(super) blocks: Param<Tensor<3>>,
}

impl BatLinear {
    pub(super) fn new(base: Proj, blocks: Tensor<3>) -> Self {
        let blocks = Param::from_tensor(blocks);
        Self { base, blocks }
    }
}

impl Reweighted for BatLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        kernels::linear(x, self.weight(pass), self.base.bias())
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (weight, blocks) = (self.base.weight(pass), self.blocks.val());
        let ([d_in, d_out], [outs, rank, _]) = (weight.dims(), blocks.dims());
        let ins = d_in / rank;
        // Blocks of [out, in] by [output block, input block].
        let cut = weight
            .clone()
            .reshape([ins, rank, outs, rank])
            .permute([2, 0, 3, 1]);
        let mixed = cut.reshape([outs, ins * rank, rank]).matmul(blocks.clone());
        let update = mixed.reshape([outs, ins, rank, rank]) + blocks.unsqueeze_dim(1);
        weight + update.permute([1, 3, 0, 2]).reshape([d_in, d_out])
    }
}
