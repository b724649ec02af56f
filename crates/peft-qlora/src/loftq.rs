//! LoftQ: QLoRA whose update starts as what the packed weight lacks.
//!
//! Paper: Li et al. 2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
//! arXiv 2310.08659.
//! Seam: linear layers, over [`Nf4`] storage. `Q` and `A B` are found in turns: `Q` packs
//! `W - scaling * A B`, and `scaling * A B` is the principal part of `W - Q`; see
//! [`factor::principal`].
//! Differs from: HF PEFT leaves the scaling out, so that its start is the better one only where
//! `alpha` is the rank. Its adapters come with a base of their own, which is `Q` here: they have no
//! form in its files.

use std::sync::Arc;

use burn::tensor::Tensor;
use peft_core::{
    CoreError, Geometry, Method, MethodConfig, MethodInfo, Proj, Site, Start, Storage, Store,
    Targets, check,
};
use peft_lora::factor;
use peft_lora::lora::{Factors, Lora, LoraLinear, split};
use serde::{Deserialize, Serialize};

use crate::storage::Nf4;

/// Configuration of LoftQ, `kind = "loftq"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoftQ {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of `A` while training.
    pub dropout: f64,
    /// Which linear layers get an update; all of them where none are named.
    pub targets: Targets,
    /// How many times the weight is packed and its update found.
    pub iterations: usize,
    /// Rounds of a search for the update, in place of a whole singular value decomposition in every
    /// iteration, which takes seconds for a matrix of 768 x 2304.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub niter: Option<usize>,
    /// Weights that share one scale.
    pub block_size: usize,
    /// Whether the scales are kept in 8 bits too.
    pub double_quant: bool,
    /// Whether the update starts at zero, for values that are about to be put in.
    #[serde(skip)]
    blank: bool,
}

impl Default for LoftQ {
    fn default() -> Self {
        let (lora, nf4) = (Lora::default(), Nf4::default());
        Self {
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: lora.dropout,
            targets: Targets::all_linear(),
            iterations: 1,
            niter: None,
            block_size: nf4.block_size,
            double_quant: nf4.double_quant,
            blank: false,
        }
    }
}

impl LoftQ {
    /// The storage half.
    pub fn nf4(&self) -> Nf4 {
        Nf4::new(self.block_size, self.double_quant)
    }

    /// The LoRA half.
    pub fn lora(&self) -> Lora {
        Lora {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.clone(),
            ..Lora::default()
        }
    }
}

/// The most rounds and iterations that make sense.
const MOST: usize = 100;

fn limited(key: &str, value: usize) -> Result<(), CoreError> {
    check::size(key, value)?;
    match value > MOST {
        true => Err(CoreError::bad_value(key, value, &format!("at most {MOST}"))),
        false => Ok(()),
    }
}

impl MethodConfig for LoftQ {
    const INFO: MethodInfo = MethodInfo {
        kind: "loftq",
        name: "LoftQ",
        paper: "Li et al. 2023, arXiv 2310.08659",
        seam: "linear layers over NF4",
        formula: "r (in + out) per target",
        start: Start::Elsewhere("nearer to the dense base than its packed weights are"),
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Self {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Self {
                rank: 3,
                iterations: 3,
                niter: Some(4),
                block_size: 32,
                double_quant: false,
                ..Self::default()
            },
        ]
    }
}

impl Method for LoftQ {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        limited("iterations", self.iterations)?;
        if let Some(rounds) = self.niter {
            limited("niter", rounds)?;
        }
        self.nf4().check()?;
        split::check(&self.lora(), geometry)
    }

    fn storage(&self) -> Option<Box<dyn Storage>> {
        Some(Box::new(self.nf4()))
    }

    fn splits(&self) -> bool {
        true
    }

    /// What is packed in the first iteration is the weight itself, whatever the update will be.
    fn without_start(&self) -> Option<Arc<dyn Method>> {
        let blank = self.iterations == 1;
        blank.then(|| {
            Arc::new(Self {
                blank,
                ..self.clone()
            }) as Arc<dyn Method>
        })
    }

    fn split(&self, site: &Site, base: &Proj, store: Store<'_>) -> Result<Option<Proj>, CoreError> {
        if !self.targets.contains(site) {
            return Ok(None);
        }
        let lora = self.lora();
        let dense = split::dense(site, base)?;
        let pass = peft_core::Pass::new();
        let mut packed = store(dense.clone())?;
        if self.blank {
            let device = dense.weight.val().device();
            let start = Factors::new(
                Tensor::zeros([site.d_in, self.rank], &device),
                Tensor::zeros([self.rank, site.d_out], &device),
            );
            let layer = LoraLinear::starting_at(&lora, site, packed, start);
            return Ok(Some(Proj::new(layer)));
        }
        let mut update = self.missing(dense.weight.val() - packed.weight(&pass));
        for _ in 1..self.iterations {
            packed = store(split::without(dense, &update, 1.0))?;
            update = self.missing(dense.weight.val() - packed.weight(&pass));
        }
        // The scaling is taken out of both factors alike.
        let share = (self.rank as f64 / self.alpha).sqrt();
        let start = update.scaled(share);
        let layer = LoraLinear::starting_at(&lora, site, packed, start);
        Ok(Some(Proj::new(layer)))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.lora().parameters(geometry)
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }
}

impl LoftQ {
    /// The update that makes up best for what the packed weight lacks.
    fn missing(&self, difference: Tensor<2>) -> Factors {
        factor::principal(&difference, self.rank, self.niter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;
    use burn::tensor::Device;
    use peft_core::contract::random;
    use peft_core::{Dense, Init, Pass, Role};
    use peft_lora::{Dora, Olora, Pissa};

    peft_core::contract_tests!(LoftQ);

    const WIDTHS: [usize; 2] = [64, 48];

    fn site() -> Site {
        Site {
            layer: 0,
            role: Role::Query,
            path: "query".into(),
            d_in: WIDTHS[0],
            d_out: WIDTHS[1],
        }
    }

    /// A weight with a few large directions, as those of trained models have.
    fn weight() -> Tensor<2> {
        let device = Device::flex().autodiff();
        let [d_in, d_out] = WIDTHS;
        let large = random([d_in, 3], &device).matmul(random([3, d_out], &device));
        random(WIDTHS, &device).mul_scalar(0.3) + large
    }

    /// How far the layer is from the weight it was made of.
    fn distance(method: &dyn Method, weight: &Tensor<2>) -> f32 {
        let base = Proj::new(Dense::new(weight.clone(), None).no_grad());
        let store = |dense| Nf4::new(64, true).pack(&site(), dense);
        let layer = match method.split(&site(), &base, &store).unwrap() {
            Some(layer) => layer,
            None => {
                let packed = store(base.downcast_ref::<Dense>().unwrap().clone()).unwrap();
                method.project(&site(), packed, &mut Init::new(0, &weight.device()))
            }
        };
        let lost = weight.clone() - layer.weight(&Pass::new());
        lost.square().sum().sqrt().into_scalar()
    }

    #[test]
    fn its_start_is_nearer_to_the_weight_than_that_of_plain_lora_and_nearer_with_more_iterations() {
        let weight = weight();
        let plain = distance(&Lora::default(), &weight);
        let after = |iterations| {
            let loftq = LoftQ {
                alpha: 5.0,
                iterations,
                ..LoftQ::default()
            };
            distance(&loftq, &weight)
        };
        let (one, five) = (after(1), after(5));
        assert!(one < 0.85 * plain && five < one, "{plain} {one} {five}");
    }

    #[test]
    fn a_search_finds_nearly_as_good_a_start_as_the_whole_decomposition() {
        let weight = weight();
        let whole = distance(&LoftQ::default(), &weight);
        let sought = LoftQ {
            niter: Some(6),
            ..LoftQ::default()
        };
        let sought = distance(&sought, &weight);
        assert!((sought - whole).abs() < 0.01 * whole, "{sought} {whole}");
    }

    #[test]
    fn the_rest_of_a_split_weight_loses_less_in_packing_than_the_whole() {
        let weight = weight();
        let plain = distance(&Lora::default(), &weight);
        let pissa = distance(&Pissa::default(), &weight);
        assert!(pissa < 0.5 * plain, "{plain} {pissa}");
        // OLoRA takes out the space of the first rows, not the largest part.
        let olora = distance(&Olora::default(), &weight);
        assert!(olora.is_finite() && olora != plain, "{plain} {olora}");
    }

    #[test]
    fn dora_over_packed_weights_starts_as_they_are_and_keeps_their_lengths() {
        let weight = weight();
        let plain = distance(&Lora::default(), &weight);
        let dora = distance(&Dora::default(), &weight);
        assert!((dora - plain).abs() < 1e-3 * plain, "{plain} {dora}");
    }

    #[test]
    fn a_base_that_is_packed_already_is_refused() {
        let base = Dense::new(weight(), None);
        let packed = Nf4::default().pack(&site(), base).unwrap();
        let store = |dense| Nf4::default().pack(&site(), dense);
        let error = LoftQ::default()
            .split(&site(), &packed, &store)
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("`query.weight` is nf4+dq in blocks of 64, expected dense"),
            "{error}"
        );
    }
}
