//! The linear layer with an update in three factors.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Init, Pass, Proj, Reweighted, Site, kernels};

/// What every layer of a model counts its part of the orthogonality loss by.
#[derive(Module, Debug)]
pub struct AdaLoraShared {
    /// The factor on the distance of one matrix.
    pub weight: f64,
}

/// A linear layer with an update in three factors.
#[derive(Module, Debug)]
pub struct AdaLoraLinear {
    base: Proj,
    /// `[d_in, rank]`
    pub(super) a: Param<Tensor<2>>,
    /// `[rank]`
    pub(super) e: Param<Tensor<1>>,
    /// `[rank, d_out]`
    pub(super) b: Param<Tensor<2>>,
    dropout: Dropout,
    scaling: f64,
}

impl AdaLoraLinear {
    pub(super) fn new(
        site: &Site,
        rank: usize,
        scaling: f64,
        dropout: f64,
        base: Proj,
        init: &mut Init,
    ) -> Self {
        Self {
            a: Param::from_tensor(init.normal([site.d_in, rank], 0.02)),
            e: Param::from_tensor(init.zeros([rank])),
            b: Param::from_tensor(init.normal([rank, site.d_out], 0.02)),
            dropout: DropoutConfig::new(dropout).init(),
            scaling,
            base,
        }
    }

    pub(super) fn rank(&self) -> usize {
        let [rank] = self.e.lazy_shape().dims();
        rank
    }

    /// How far the columns of `A` and the rows of `B` are from orthonormal, `[1]`.
    pub(super) fn distance(&self) -> Tensor<1> {
        let (a, b) = (self.a.val(), self.b.val());
        let distance = |products: Tensor<2>| {
            let identity = Tensor::<2>::eye(self.rank(), &products.device());
            // The root has no slope at zero.
            let square = (products - identity).square().sum();
            square.add_scalar(1e-12).sqrt()
        };
        let b_rows = b.clone().matmul(b.transpose());
        distance(a.clone().transpose().matmul(a)) + distance(b_rows)
    }
}

impl Reweighted for AdaLoraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        if self.rank() == 0 {
            return y;
        }
        if x.device().is_autodiff() {
            let weight = pass.shared::<AdaLoraShared>().weight;
            if weight > 0.0 {
                pass.add_loss(self.distance().mul_scalar(weight));
            }
        }
        let h = kernels::linear(self.dropout.forward(x), self.a.val(), None);
        let h = h * self.e.val().mul_scalar(self.scaling).unsqueeze();
        kernels::linear_onto(y, h, self.b.val())
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let base = self.base.weight(pass);
        if self.rank() == 0 {
            return base;
        }
        let scaled = self.a.val() * self.e.val().mul_scalar(self.scaling).unsqueeze();
        base + scaled.matmul(self.b.val())
    }
}
