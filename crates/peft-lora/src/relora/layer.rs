//! The linear layer with an update that can be merged.

use burn::module::{Module, Param, ParamId};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Buffer, Init, Pass, Proj, Reweighted, Site, kernels};

use super::ReLora;

/// A linear layer with a low-rank update, and those that were merged before it.
#[derive(Module, Debug)]
pub struct ReLoraLinear {
    base: Proj,
    /// `[d_in, rank]`
    pub(super) a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    pub(super) b: Param<Tensor<2>>,
    /// `[d_in, merges * rank]`, zero where nothing was merged yet.
    pub(super) merged_a: Buffer,
    /// `[merges * rank, d_out]`, likewise.
    pub(super) merged_b: Buffer,
    /// Whether the stacks are known to hold nothing, and are left out. Only a run of training knows:
    /// values may be put into a layer at any time before.
    pub(super) empty: bool,
    dropout: Dropout,
    scaling: f64,
}

impl ReLoraLinear {
    pub(super) fn new(relora: &ReLora, site: &Site, base: Proj, init: &mut Init) -> Self {
        let (rank, all) = (relora.rank, relora.rank * relora.merges);
        Self {
            a: Param::from_tensor(init.kaiming_uniform([site.d_in, rank], site.d_in)),
            b: Param::from_tensor(init.zeros([rank, site.d_out])),
            merged_a: Buffer::new(init.zeros([site.d_in, all])),
            merged_b: Buffer::new(init.zeros([all, site.d_out])),
            empty: false,
            dropout: DropoutConfig::new(relora.dropout).init(),
            scaling: relora.alpha / rank as f64,
            base,
        }
    }

    /// The same map with the update in the stacks and a new one that is still zero; none where the
    /// stacks are full.
    pub(super) fn merged(self, init: &mut Init) -> Option<Self> {
        let [rank, d_out] = self.b.dims();
        let [d_in, _] = self.a.dims();
        let rows = self.free_rows(rank)?;
        let (a, b) = (self.a.val().detach(), self.b.val().detach());
        let b = b.mul_scalar(self.scaling);
        let columns = rows.clone();
        let fresh = init.kaiming_uniform([d_in, rank], d_in);
        Some(Self {
            merged_a: self
                .merged_a
                .map(|old| old.slice_assign([0..d_in, columns], a)),
            merged_b: self
                .merged_b
                .map(|old| old.slice_assign([rows, 0..d_out], b)),
            a: self.a.map(|old| in_place_of(old, fresh)),
            b: self.b.map(|old| {
                let zeros = old.zeros_like();
                in_place_of(old, zeros)
            }),
            empty: false,
            ..self
        })
    }

    /// The layer without the products of the stacks, if nothing was merged into them yet.
    pub(super) fn without_empty_stacks(self) -> Self {
        let empty = self.merged_b.val().abs().max().into_scalar::<f32>() == 0.0;
        Self { empty, ..self }
    }

    /// The first rows of the lower stack that hold nothing yet.
    fn free_rows(&self, rank: usize) -> Option<std::ops::Range<usize>> {
        let held = self.merged_b.val().abs().sum_dim(1).into_data();
        let held: Vec<f32> = held.iter::<f32>().collect();
        let last = held.iter().rposition(|sum| *sum != 0.0);
        let used = last.map_or(0, |row| row / rank + 1) * rank;
        (used + rank <= held.len()).then_some(used..used + rank)
    }

    /// What is trained.
    pub(super) fn factors(&self) -> [ParamId; 2] {
        [self.a.id, self.b.id]
    }
}

/// A new value that is trained if the old one was.
fn in_place_of(old: Tensor<2>, new: Tensor<2>) -> Tensor<2> {
    new.detach().set_require_grad(old.is_require_grad())
}

impl Reweighted for ReLoraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        let y = match self.empty {
            true => y,
            false => {
                let h = kernels::linear(x.clone(), self.merged_a.val(), None);
                kernels::linear_onto(y, h, self.merged_b.val())
            }
        };
        let h = kernels::linear(self.dropout.forward(x), self.a.val(), None);
        kernels::linear_onto(y, h.mul_scalar(self.scaling), self.b.val())
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let merged = self.merged_a.val().matmul(self.merged_b.val());
        let update = self.a.val().matmul(self.b.val()).mul_scalar(self.scaling);
        self.base.weight(pass) + merged + update
    }
}
