//! The token embedding with a low-rank update, as HF PEFT adapts embeddings.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::{Init, Lookup, Pass, Table, kernels};

use super::Lora;

/// `row(id) + scaling * A[id] B`; PEFT starts with `A` zero and `B` normal. No dropout, as there.
#[derive(Module, Debug)]
pub struct LoraEmbedding {
    /// `[vocab, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, d]`
    b: Param<Tensor<2>>,
    scaling: f64,
}

impl LoraEmbedding {
    pub(crate) fn new(lora: &Lora, table: &Table, init: &mut Init) -> Self {
        let rank = lora.rank_at(&table.path);
        Self {
            a: Param::from_tensor(init.zeros([table.rows, rank])),
            b: Param::from_tensor(init.normal([rank, table.width], 1.0)),
            scaling: lora.scaling_at(&table.path),
        }
    }
}

impl Lookup for LoraEmbedding {
    fn forward(&self, ids: Tensor<2, Int>, rows: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        let [batch, seq, _] = rows.dims();
        let narrow = kernels::embedding(self.a.val(), ids.reshape([batch * seq]));
        let [_, rank] = narrow.dims();
        let narrow = narrow.reshape([batch, seq, rank]).mul_scalar(self.scaling);
        kernels::linear_onto(rows, narrow, self.b.val())
    }
}
