//! LoRA-FA: LoRA whose projection down stays as it was drawn.
//!
//! Paper: Zhang et al. 2023, "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language
//! Models Fine-tuning", arXiv 2308.03303.
//! Seam: linear layers. `y = x W + b + scaling * dropout(x) A B` with `A` frozen at its
//! Kaiming-uniform start, so that the update keeps nothing of its wide input for the backward pass but
//! the mask of a dropout, as wide.
//! With `precondition` the gradient of `B` is multiplied by `(A' A)^-1 / scaling^2`: the step of `A B`
//! is then the nearest to that of a whole weight.
//! Differs from: HF PEFT has it as an optimizer over LoRA, which always multiplies the gradient so,
//! in 16 bits where the machine has them and after the gradients were clipped; here it is clipped as
//! multiplied. Its files are LoRA's, and are read as such.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj, Reweighted,
    Site, Start, Targets, kernels,
};

use crate::cayley::inverted;
use crate::family::{lora_variant, selected};
use crate::lora::peft;

lora_variant! {
    /// Configuration of LoRA-FA, `kind = "lora_fa"`.
    LoraFa {
        /// Multiplies the gradient of `B` by `(A' A)^-1 / scaling^2`, as HF PEFT's optimizer does.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        precondition: bool,
    }
}

impl MethodConfig for LoraFa {
    const INFO: MethodInfo = MethodInfo {
        kind: "lora_fa",
        name: "LoRA-FA",
        paper: "Zhang et al. 2023, arXiv 2308.03303",
        seam: "linear layers",
        formula: "r out per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            LoraFa {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            LoraFa {
                rank: 3,
                rslora: true,
                targets: Targets::all_linear(),
                precondition: true,
                ..Self::default()
            },
        ]
    }
}

impl Method for LoraFa {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        // Unlike LoRA's, the targets are linear layers only.
        for site in self.targets.select(&geometry.sites)? {
            if self.precondition && self.rank > site.d_in {
                let (most, path) = (site.d_in, &site.path);
                let expected =
                    format!("at most {most}, the width into `{path}`: `A' A` is inverted");
                return Err(CoreError::bad_value("rank", self.rank, &expected));
            }
        }
        if self.precondition && self.alpha == 0.0 {
            let expected =
                "another number than 0 with `precondition`, which divides by the scaling";
            return Err(CoreError::bad_value("alpha", 0, expected));
        }
        self.lora().check(geometry)
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(LoraFaLinear::new(self, site, base, init))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites.map(|site| self.rank * site.d_out).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        Some(peft::write(&self.lora(), geometry))
    }
}

/// A linear layer with a low-rank update of which one factor is trained.
#[derive(Module, Debug)]
pub struct LoraFaLinear {
    base: Proj,
    /// `[d_in, rank]`; never trained.
    a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b: Param<Tensor<2>>,
    /// What the gradient of `B` is multiplied by, `[rank, rank]`, symmetric; it follows from `A`, with
    /// which it is kept.
    metric: Option<Param<Tensor<2>>>,
    dropout: Dropout,
    scaling: f64,
}

/// Added to the diagonal of `A' A` before it is inverted, as PEFT does.
const DELTA: f64 = 1e-8;

impl LoraFaLinear {
    fn new(method: &LoraFa, site: &Site, base: Proj, init: &mut Init) -> Self {
        let rank = method.rank;
        let scaling = method.lora().scaling_at(&site.path);
        let a = init.kaiming_uniform([site.d_in, rank], site.d_in);
        let metric = method.precondition.then(|| metric(&a, scaling));
        Self {
            a: Param::from_tensor(a).set_require_grad(false),
            b: Param::from_tensor(init.zeros([rank, site.d_out])),
            metric: metric.map(|m| Param::from_tensor(m).set_require_grad(false)),
            dropout: DropoutConfig::new(method.dropout).init(),
            scaling,
            base,
        }
    }

    /// `B`, its gradient on the way back multiplied: by the chain rule that is the gradient of the
    /// symmetric `M` times it, so `M` stands before a difference from `B` itself that is always zero.
    fn b(&self) -> Tensor<2> {
        let b = self.b.val();
        match &self.metric {
            Some(metric) if b.device().is_autodiff() => {
                let value = b.clone().detach();
                value.clone() + metric.val().matmul(b - value)
            }
            _ => b,
        }
    }
}

/// `(A' A)^-1 / scaling^2`
fn metric(a: &Tensor<2>, scaling: f64) -> Tensor<2> {
    let a = a.clone().detach();
    let gram = a.clone().transpose().matmul(a);
    let [rank, _] = gram.dims();
    let gram = gram.clone() + Tensor::<2>::eye(rank, &gram.device()).mul_scalar(DELTA);
    let inverse = inverted(gram.unsqueeze()).squeeze_dim::<2>(0);
    inverse.div_scalar(scaling * scaling)
}

impl Reweighted for LoraFaLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        let h = kernels::linear(self.dropout.forward(x), self.a.val(), None);
        kernels::linear_onto(y, h.mul_scalar(self.scaling), self.b())
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let update = self.a.val().matmul(self.b.val());
        self.base.weight(pass) + update.mul_scalar(self.scaling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, device, largest, site, stirred};
    use peft_core::contract::random;
    use peft_core::{Role, state};

    peft_core::contract_tests!(LoraFa);

    #[test]
    fn only_the_projection_up_is_trained() {
        let layer = stirred(&LoraFa::default(), &site(Role::Query, 6, 5));
        let trained = state::trained_tensors(&layer);
        assert_eq!(trained.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn the_update_is_that_of_lora() {
        let layer = stirred(&LoraFa::default(), &site(Role::Query, 9, 5));
        let own: &LoraFaLinear = layer.downcast_ref().unwrap();
        let pass = Pass::new();
        let update = own.a.val().matmul(own.b.val()).mul_scalar(2.0);
        let weight = own.base.weight(&pass) + update;
        computes(&layer, &pass, weight, own.base.bias().unwrap());
    }

    /// The gradient that the optimizer of PEFT 0.21.2 (`optimizers/lorafa.py`) goes on with.
    #[test]
    fn a_preconditioned_gradient_is_divided_by_the_products_of_a_and_the_square_of_the_scaling() {
        let plain = LoraFa {
            rank: 3,
            alpha: 1.5,
            ..LoraFa::default()
        };
        let conditioned = LoraFa {
            precondition: true,
            ..plain.clone()
        };
        let x = random([2, 4, 9], &device());
        let run = |layer: &LoraFaLinear| {
            let y = Reweighted::forward(layer, x.clone(), &Pass::new());
            let gradient = layer.b.grad(&y.clone().square().sum().backward()).unwrap();
            (y, gradient)
        };
        let layer = stirred(&conditioned, &site(Role::Query, 9, 5));
        let own: &LoraFaLinear = layer.downcast_ref().unwrap();
        let without = LoraFaLinear {
            metric: None,
            ..own.clone()
        };
        let ((y, found), (expected, raw)) = (run(own), run(&without));
        assert_eq!(y.into_data(), expected.into_data());
        // M g is found where A' A (M g) s^2 is g.
        let a = own.a.val().without_autodiff();
        let back = a.clone().transpose().matmul(a).matmul(found);
        assert!(largest(back.mul_scalar(0.25) - raw.clone()) < 1e-3 * largest(raw));
    }

    #[test]
    fn what_cannot_be_inverted_is_refused_by_name() {
        let toy: peft_core::toy::Toy =
            peft_core::contract::ContractHost::build(&mut Init::new(0, &device()));
        let geometry = peft_core::Host::geometry(&toy);
        let refused = |rank, alpha| {
            let method = LoraFa {
                rank,
                alpha,
                precondition: true,
                ..LoraFa::default()
            };
            method.check(&geometry).unwrap_err().to_string()
        };
        assert!(refused(9, 1.0).contains("`rank` is 9"));
        assert!(refused(2, 0.0).contains("`alpha` is 0"));
    }
}
