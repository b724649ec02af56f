//! The linear layer with a low-rank update.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Dense, Init, Pass, Proj, Projection, Site, kernels};

use super::Lora;

/// A linear layer with a low-rank update.
#[derive(Module, Debug)]
pub struct LoraLinear {
    pub(crate) base: Proj,
    /// `[d_in, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    b: Param<Tensor<2>>,
    /// `[d_out]`
    b_bias: Option<Param<Tensor<1>>>,
    /// Where `A` and `B` started, for a base that was left without their product.
    start: Option<Factors>,
    dropout: Dropout,
    scaling: f64,
}

/// Two factors of a low-rank matrix.
#[derive(Module, Debug)]
pub struct Factors {
    /// `[d_in, rank]`
    pub a: Param<Tensor<2>>,
    /// `[rank, d_out]`
    pub b: Param<Tensor<2>>,
}

impl Factors {
    /// Factors of these values.
    pub fn new(a: Tensor<2>, b: Tensor<2>) -> Self {
        Self {
            a: Param::from_tensor(a.detach()),
            b: Param::from_tensor(b.detach()),
        }
    }

    /// Both factors times a number.
    #[must_use]
    pub fn scaled(&self, by: f64) -> Self {
        Self::new(self.a.val().mul_scalar(by), self.b.val().mul_scalar(by))
    }

    /// The matrix itself, `[d_in, d_out]`.
    pub fn product(&self) -> Tensor<2> {
        self.a.val().matmul(self.b.val())
    }
}

impl LoraLinear {
    /// A layer whose update starts at these factors.
    pub fn starting_at(lora: &Lora, site: &Site, base: Proj, start: Factors) -> Self {
        Self {
            a: start.a,
            b: start.b,
            b_bias: None,
            start: None,
            dropout: DropoutConfig::new(lora.dropout).init(),
            scaling: lora.scaling_at(&site.path),
            base,
        }
    }

    /// The layer over a base that was left without what the update starts as.
    pub(crate) fn over_the_rest(self) -> Self {
        let frozen = |param: &Param<Tensor<2>>| {
            Param::from_tensor(param.val().detach()).set_require_grad(false)
        };
        let (a, b) = (frozen(&self.a), frozen(&self.b));
        let start = Some(Factors { a, b });
        Self { start, ..self }
    }

    pub(crate) fn new(lora: &Lora, site: &Site, base: Proj, init: &mut Init) -> Self {
        let rank = lora.rank_at(&site.path);
        let bias = lora.lora_bias.then(|| init.zeros([site.d_out]));
        Self {
            a: Param::from_tensor(init.kaiming_uniform([site.d_in, rank], site.d_in)),
            b: Param::from_tensor(init.zeros([rank, site.d_out])),
            b_bias: bias.map(Param::from_tensor),
            start: None,
            dropout: DropoutConfig::new(lora.dropout).init(),
            scaling: lora.scaling_at(&site.path),
            base,
        }
    }

    /// The layer before this part was taken out of it.
    fn whole(&self, part: &Factors, pass: &Pass<'_>) -> Dense {
        let weight = self.base.weight(pass) + part.product().mul_scalar(self.scaling);
        Dense::new(weight.detach(), self.base.bias()).no_grad()
    }

    /// What the update adds to every token, `[d_out]`.
    fn shift(&self) -> Option<Tensor<1>> {
        let bias = self.b_bias.as_ref()?;
        Some(bias.val().mul_scalar(self.scaling))
    }
}

impl Projection for LoraLinear {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        // The scaling goes onto the narrow product: rank values a token in place of d_out.
        let h = kernels::linear(self.dropout.forward(x), self.a.val(), None);
        let y = kernels::linear_onto(y, h.mul_scalar(self.scaling), self.b.val());
        match self.shift() {
            Some(shift) => y + shift.unsqueeze(),
            None => y,
        }
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) + self.a.val().matmul(self.b.val()).mul_scalar(self.scaling)
    }

    fn bias(&self) -> Option<Tensor<1>> {
        match (self.base.bias(), self.shift()) {
            (Some(base), Some(shift)) => Some(base + shift),
            (base, shift) => base.or(shift),
        }
    }

    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Some(Dense::new(self.weight(pass), self.bias()))
    }

    /// A weight that was split is put together again.
    fn base(&self) -> Option<Proj> {
        Some(match &self.start {
            None => self.base.clone(),
            Some(start) => Proj::new(self.whole(start, &Pass::new())),
        })
    }

    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }

    /// Plain LoRA of twice the rank over the whole weight: the start is put back into the base, and
    /// taken off by the other half of the update.
    fn settled(&self, pass: &Pass<'_>) -> Option<Proj> {
        let start = self.start.as_ref()?;
        let a = Tensor::cat(vec![self.a.val(), start.a.val()], 1);
        let b = Tensor::cat(vec![self.b.val(), start.b.val().neg()], 0);
        Some(Proj::new(Self {
            base: Proj::new(self.whole(start, pass)),
            a: Param::from_tensor(a.detach()),
            b: Param::from_tensor(b.detach()),
            start: None,
            ..self.clone()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use peft_core::Method;
    use peft_core::contract::random;
    use peft_core::site::Role;

    fn layer(lora: &Lora, device: &Device) -> Proj {
        let site = Site {
            layer: 0,
            role: Role::Query,
            path: "query".into(),
            d_in: 6,
            d_out: 5,
        };
        let base = Dense::new(random([6, 5], device), Some(random([5], device)));
        lora.project(&site, Proj::new(base), &mut Init::new(1, device))
    }

    #[test]
    fn the_start_of_a_is_kaiming_uniform_and_b_is_zero() {
        let device = Device::flex();
        let proj = layer(
            &Lora {
                rank: 4,
                ..Lora::default()
            },
            &device,
        );
        let lora: &LoraLinear = proj.downcast_ref().unwrap();
        let a: Vec<f32> = lora.a.val().into_data().try_to_vec().unwrap();
        let bound = 1.0 / 6f32.sqrt();
        assert!(a.iter().all(|v| v.abs() <= bound) && a.iter().any(|v| v.abs() > 0.5 * bound));
        assert!(
            lora.b
                .val()
                .into_data()
                .try_to_vec::<f32>()
                .unwrap()
                .iter()
                .all(|v| *v == 0.0)
        );
    }

    #[test]
    fn the_activation_path_agrees_with_the_composed_weight() {
        let device = Device::flex();
        let proj = layer(
            &Lora {
                rank: 4,
                alpha: 7.0,
                ..Lora::default()
            },
            &device,
        );
        let mut lora = proj.downcast_ref::<LoraLinear>().unwrap().clone();
        lora.b = Param::from_tensor(random([4, 5], &device));
        let x = random([2, 3, 6], &device);
        let pass = Pass::new();
        let composed =
            x.clone().matmul(lora.weight(&pass).unsqueeze()) + lora.bias().unwrap().unsqueeze();
        let difference = (Projection::forward(&lora, x, &pass) - composed)
            .abs()
            .max();
        assert!(difference.into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn dropout_acts_in_training_and_not_in_validation() {
        let device = Device::flex().autodiff();
        let proj = layer(
            &Lora {
                dropout: 0.5,
                ..Lora::default()
            },
            &device,
        );
        let mut lora = proj.downcast_ref::<LoraLinear>().unwrap().clone();
        lora.b = Param::from_tensor(random([8, 5], &device));
        let x = random([2, 3, 6], &device);
        let twice = |lora: &LoraLinear, x: Tensor<3>| {
            let run = || Projection::forward(lora, x.clone(), &Pass::new()).into_data();
            run() == run()
        };
        assert!(!twice(&lora, x.clone()));
        assert!(twice(&lora.valid(), x.without_autodiff()));
    }
}
