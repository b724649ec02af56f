//! VB-LoRA: low-rank factors put together from the vectors of one bank that the whole model shares.
//!
//! Paper: Li et al. 2024, "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
//! NeurIPS, arXiv 2405.15179.
//! Seam: linear layers, with state shared across them. `y = x W + b + x A B`; every stretch of
//! `vector_length` numbers of `A` and `B` is a mixture of the bank's vectors, the softmax of the
//! `top_k` largest of the stretch's own logits. Starts as HF PEFT does: a uniform bank and normal
//! logits, so that the update is small and not zero.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Tensor, activation::softmax};
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, SharedSlot, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, peft_targets_of, place, selected};

/// Configuration of VB-LoRA, `kind = "vb_lora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VbLora {
    /// Rank of the update.
    pub rank: usize,
    /// Vectors of the bank.
    pub num_vectors: usize,
    /// Length of a vector; it divides both widths of every target.
    pub vector_length: usize,
    /// Vectors that make a stretch.
    pub top_k: usize,
    /// Bound of the bank's uniform start.
    pub bank_bound: f64,
    /// Standard deviation of the logits' start.
    pub logits_std: f64,
    /// Dropout on the input of the update while training.
    pub dropout: f64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for VbLora {
    fn default() -> Self {
        Self {
            rank: 4,
            num_vectors: 256,
            vector_length: 256,
            top_k: 2,
            bank_bound: 0.02,
            logits_std: 0.1,
            dropout: 0.0,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for VbLora {
    const INFO: MethodInfo = MethodInfo {
        kind: "vb_lora",
        name: "VB-LoRA",
        paper: "Li et al. 2024, arXiv 2405.15179",
        seam: "linear layers, shared state",
        formula: "vectors length, and vectors r (in + out) / length per target",
        start: Start::Near(0.05),
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        let small = VbLora {
            rank: 2,
            num_vectors: 6,
            vector_length: 4,
            ..Self::default()
        };
        vec![
            VbLora {
                top_k: 1,
                targets: Targets::all_linear(),
                ..small.clone()
            },
            small,
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "VBLORA" {
            return Ok(None);
        }
        Ok(Some(VbLora {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.take("r")?.unwrap_or(4),
            num_vectors: fields.take("num_vectors")?.unwrap_or(256),
            vector_length: fields.take("vector_length")?.unwrap_or(256),
            top_k: fields.take("topk")?.unwrap_or(2),
            bank_bound: fields.take("init_vector_bank_bound")?.unwrap_or(0.02),
            logits_std: fields.take("init_logits_std")?.unwrap_or(0.1),
            dropout: fields.take("vblora_dropout")?.unwrap_or(0.0),
        }))
    }
}

impl Method for VbLora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        check::size("num_vectors", self.num_vectors)?;
        check::size("vector_length", self.vector_length)?;
        check::dropout(self.dropout)?;
        finite("bank_bound", self.bank_bound)?;
        finite("logits_std", self.logits_std)?;
        let (vectors, length) = (self.num_vectors, self.vector_length);
        if !(1..=vectors).contains(&self.top_k) {
            let expected = format!("from 1 to the {vectors} of `num_vectors`");
            return Err(CoreError::bad_value("top_k", self.top_k, &expected));
        }
        for site in self.targets.select(&geometry.sites)? {
            for width in [site.d_in, site.d_out] {
                if !width.is_multiple_of(length) {
                    let expected = format!("a divisor of {width}, a width of `{}`", site.path);
                    return Err(CoreError::bad_value("vector_length", length, &expected));
                }
            }
        }
        Ok(())
    }

    fn shared(&self, _geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let shape = [self.num_vectors, self.vector_length];
        let bank = Param::from_tensor(init.uniform(shape, self.bank_bound));
        Some(SharedSlot::new(VectorBank { bank }))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (inputs, outputs) = (
            site.d_in / self.vector_length,
            site.d_out / self.vector_length,
        );
        let mut logits = |[first, second]: [usize; 2]| {
            let shape = [first, second, self.num_vectors];
            Param::from_tensor(init.normal(shape, self.logits_std))
        };
        Proj::new(VbLoraLinear {
            logits_a: logits([self.rank, inputs]),
            logits_b: logits([outputs, self.rank]),
            top_k: self.top_k,
            dropout: DropoutConfig::new(self.dropout).init(),
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let (vectors, length) = (self.num_vectors, self.vector_length);
        let own = |site: &Site| vectors * self.rank * ((site.d_in + site.d_out) / length);
        vectors * length + selected(&self.targets, geometry).map(own).sum::<usize>()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "VBLORA", "r": self.rank, "num_vectors": self.num_vectors,
            "vector_length": self.vector_length, "topk": self.top_k,
            "vblora_dropout": self.dropout, "save_only_topk_weights": false, "bias": "none",
            "init_vector_bank_bound": self.bank_bound, "init_logits_std": self.logits_std,
            "target_modules": peft_targets(&sites, geometry),
            "fan_in_fan_out": geometry.keeps_weights_in_out(),
        });
        let bank = Rule::as_is("shared/bank", "base_model.vblora_vector_bank");
        let logits = sites.iter().flat_map(|site| {
            [
                ("logits_a", "vblora_logits_A"),
                ("logits_b", "vblora_logits_B"),
            ]
            .map(|(ours, theirs)| Rule::as_is(place(site, ours), key(site, theirs)))
        });
        Some(Foreign::new(
            fields,
            [bank].into_iter().chain(logits).collect(),
        ))
    }
}

/// The vectors of all layers.
#[derive(Module, Debug)]
pub struct VectorBank {
    /// `[num_vectors, vector_length]`
    bank: Param<Tensor<2>>,
}

impl VectorBank {
    /// The mixtures that logits choose.
    ///
    /// # Shapes
    /// - logits: `[n, m, num_vectors]`
    /// - result: `[n, m, vector_length]`
    fn mixtures(&self, logits: Tensor<3>, top_k: usize) -> Tensor<3> {
        let [n, m, vectors] = logits.dims();
        let logits = logits.reshape([n * m, vectors]);
        let least = logits
            .clone()
            .detach()
            .topk(top_k, 1)
            .narrow(1, top_k - 1, 1);
        let others = logits.clone().detach().lower(least);
        let shares = softmax(logits.mask_fill(others, f32::NEG_INFINITY), 1);
        let mixed = shares.matmul(self.bank.val());
        let [_, length] = mixed.dims();
        mixed.reshape([n, m, length])
    }
}

/// A linear layer whose update is made of the bank's vectors.
#[derive(Module, Debug)]
pub struct VbLoraLinear {
    base: Proj,
    /// `[rank, d_in / vector_length, num_vectors]`
    logits_a: Param<Tensor<3>>,
    /// `[d_out / vector_length, rank, num_vectors]`
    logits_b: Param<Tensor<3>>,
    top_k: usize,
    dropout: Dropout,
}

impl VbLoraLinear {
    /// The factors of the update, `[d_in, rank]` and `[rank, d_out]`.
    fn factors(&self, pass: &Pass<'_>) -> (Tensor<2>, Tensor<2>) {
        let bank: &VectorBank = pass.shared();
        let ((d_in, d_out), rank) = (self.base.dims(), self.logits_a.lazy_shape().dims::<3>()[0]);
        let a = bank.mixtures(self.logits_a.val(), self.top_k);
        let b = bank.mixtures(self.logits_b.val(), self.top_k);
        let a = a.reshape([rank, d_in]).transpose();
        let b = b.swap_dims(0, 1).reshape([rank, d_out]);
        (a, b)
    }
}

impl Reweighted for VbLoraLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let (a, b) = self.factors(pass);
        let y = self.base.forward(x.clone(), pass);
        let h = kernels::linear(self.dropout.forward(x), a, None);
        kernels::linear_onto(y, h, b)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (a, b) = self.factors(pass);
        self.base.weight(pass) + a.matmul(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{device, largest};
    use peft_core::contract::random;

    peft_core::contract_tests!(VbLora);

    #[test]
    fn a_stretch_is_the_mixture_of_the_vectors_of_its_largest_logits() {
        let bank = VectorBank {
            bank: Param::from_tensor(random([4, 3], &device())),
        };
        let logits = [[[0.0, 2.0, 1.0, -1.0]], [[3.0, -2.0, -1.0, 3.0]]];
        let mixed = bank.mixtures(Tensor::from_data(logits, &device()), 2);
        let vector = |at| bank.bank.val().narrow(0, at, 1);
        let share = 1.0 / (1.0 + (-1f32).exp());
        let first = vector(1).mul_scalar(share) + vector(2).mul_scalar(1.0 - share);
        let second = (vector(0) + vector(3)).mul_scalar(0.5);
        let expected = Tensor::cat(vec![first, second], 0);
        assert!(largest(mixed.reshape([2, 3]) - expected) < 1e-6);
    }
}
