//! The linear layer whose columns have trained lengths.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Init, Pass, Proj, Reweighted, Site, kernels};

use crate::lora::Lora;

/// A linear layer with a low-rank update and a trained magnitude of every output.
#[derive(Module, Debug)]
pub struct DoraLinear {
    pub(super) base: Proj,
    /// `[d_in, rank]`
    pub(super) a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    pub(super) b: Param<Tensor<2>>,
    /// `[d_out]`
    pub(super) magnitude: Param<Tensor<1>>,
    /// The base's squared norms, `[d_out]`; never trained.
    squares: Param<Tensor<1>>,
    /// By how much each output is stretched, `[d_out]`, where nothing is trained any more.
    pub(super) steady: Option<Tensor<1>>,
    dropout: Dropout,
    scaling: f64,
}

/// What the norm of an all-zero column counts as, so that its magnitude of 0 stays 0.
const TINY: f64 = 1e-24;

impl DoraLinear {
    pub(super) fn new(lora: &Lora, site: &Site, base: Proj, init: &mut Init) -> Self {
        let rank = lora.rank_at(&site.path);
        let weight = base.weight(&Pass::new()).detach();
        let squares = weight.square().sum_dim(0).reshape([site.d_out]);
        Self {
            a: Param::from_tensor(init.kaiming_uniform([site.d_in, rank], site.d_in)),
            b: Param::from_tensor(init.zeros([rank, site.d_out])),
            magnitude: Param::from_tensor(squares.clone().sqrt().detach()),
            squares: Param::from_tensor(squares).set_require_grad(false),
            steady: None,
            dropout: DropoutConfig::new(lora.dropout).init(),
            scaling: lora.scaling_at(&site.path),
            base,
        }
    }

    /// The columns of `A` as rows, `[1, rank, d_in]`; no gradient passes through them.
    fn rows(&self) -> Tensor<3> {
        self.a.val().detach().transpose().unsqueeze()
    }

    /// The norm of each output's weights, `[d_out]`, from what the base makes of [`Self::rows`]; no
    /// gradient passes through it.
    fn norms(&self, made: Tensor<3>) -> Tensor<1> {
        let (a, b) = (self.a.val().detach(), self.b.val().detach());
        let made = match self.base.bias() {
            Some(bias) => made - bias.unsqueeze(),
            None => made,
        };
        let across = made.detach().squeeze_dim::<2>(0) * b.clone();
        let within = a.clone().transpose().matmul(a).matmul(b.clone()) * b;
        let sum = |products: Tensor<2>| products.sum_dim(0).squeeze_dim::<1>(0);
        let squares = self.squares.val()
            + sum(across).mul_scalar(2.0 * self.scaling)
            + sum(within).mul_scalar(self.scaling * self.scaling);
        squares.clamp_min(TINY).sqrt().detach()
    }

    /// By how much each output is stretched, `[d_out]`.
    pub(super) fn stretch(&self, pass: &Pass<'_>) -> Tensor<1> {
        match &self.steady {
            Some(stretch) => stretch.clone(),
            None => self.magnitude.val() / self.norms(self.base.forward(self.rows(), pass)),
        }
    }

    /// What the base makes of the input, and by how much each output is stretched.
    fn applied(&self, x: Tensor<3>, pass: &Pass<'_>) -> (Tensor<3>, Tensor<1>) {
        if self.steady.is_some() || self.base.packing().is_none() {
            let stretch = self.stretch(pass);
            return (self.base.forward(x, pass), stretch);
        }
        let [batch, seq, d_in] = x.dims();
        let (tokens, rows) = (batch * seq, self.rows());
        let [_, rank, _] = rows.dims();
        let together = Tensor::cat(vec![x.reshape([1, tokens, d_in]), rows], 1);
        let made = self.base.forward(together, pass);
        let norms = self.norms(made.clone().narrow(1, tokens, rank));
        let [_, _, d_out] = made.dims();
        let y = made.narrow(1, 0, tokens).reshape([batch, seq, d_out]);
        (y, self.magnitude.val() / norms)
    }

    /// `y + scaling * x A B`
    fn with_update(&self, y: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        let h = kernels::linear(x, self.a.val(), None);
        kernels::linear_onto(y, h.mul_scalar(self.scaling), self.b.val())
    }

    pub(super) fn drops(&self, x: &Tensor<3>) -> bool {
        self.dropout.prob > 0.0 && x.device().is_autodiff()
    }
}

impl Reweighted for DoraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let bias = self.base.bias();
        let (y, stretch) = self.applied(x.clone(), pass);
        if self.drops(&x) {
            // y + (g - 1) x' W + g s x' A B for what dropout leaves of x.
            let left = self.dropout.forward(x);
            let direct = self.base.forward(left.clone(), pass);
            let added = self.with_update(direct.clone(), left) * stretch.clone().unsqueeze();
            let y = y + added - direct;
            return match bias {
                Some(bias) => y + (bias.clone() - bias * stretch).unsqueeze(),
                None => y,
            };
        }
        let y = self.with_update(y, x) * stretch.clone().unsqueeze();
        // The base's bias is inside y and must not be stretched.
        match bias {
            Some(bias) => y + (bias.clone() - bias * stretch).unsqueeze(),
            None => y,
        }
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let update = self.a.val().matmul(self.b.val()).mul_scalar(self.scaling);
        (self.base.weight(pass) + update) * self.stretch(pass).unsqueeze()
    }

    fn steady(&self, pass: &Pass<'_>) -> Option<Proj> {
        let steady = Some(self.stretch(pass).detach());
        Some(Proj::new(Self {
            steady,
            ..self.clone()
        }))
    }
}
