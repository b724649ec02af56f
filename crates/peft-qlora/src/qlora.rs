//! QLoRA: LoRA on every linear layer of a model whose weights are frozen in 4 bits.
//!
//! Paper: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314.
//! Seam: linear layers, over [`Nf4`] storage.
//! Differs from: `kind = "lora"` with `storage = "nf4"` in its defaults only: every linear layer,
//! double quantisation. The paper's runs use rank 64, alpha 16, dropout 0.1; the defaults here are
//! LoRA's, so that the two compare at equal size.

use peft_core::{
    CoreError, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Proj, Site, Start,
    Storage, Targets,
};
use peft_lora::Lora;
use serde::{Deserialize, Serialize};

use crate::storage::Nf4;

/// Configuration of QLoRA, `kind = "qlora"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Qlora {
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the input of `A` while training.
    pub dropout: f64,
    /// Which linear layers get an update; all of them where none are named.
    pub targets: Targets,
    /// Weights that share one scale.
    pub block_size: usize,
    /// Whether the scales are kept in 8 bits too.
    pub double_quant: bool,
}

impl Default for Qlora {
    fn default() -> Self {
        let Lora {
            rank,
            alpha,
            dropout,
            ..
        } = Lora::default();
        let Nf4 {
            block_size,
            double_quant,
            ..
        } = Nf4::default();
        Self {
            rank,
            alpha,
            dropout,
            targets: Targets::all_linear(),
            block_size,
            double_quant,
        }
    }
}

impl Qlora {
    /// The storage half.
    pub fn nf4(&self) -> Nf4 {
        Nf4::new(self.block_size, self.double_quant)
    }

    /// The LoRA half.
    pub fn lora(&self) -> Lora {
        let Self {
            rank,
            alpha,
            dropout,
            ..
        } = *self;
        Lora {
            rank,
            alpha,
            dropout,
            targets: self.targets.clone(),
            ..Lora::default()
        }
    }
}

impl MethodConfig for Qlora {
    const INFO: MethodInfo = MethodInfo {
        kind: "qlora",
        name: "QLoRA",
        paper: "Dettmers et al. 2023, arXiv 2305.14314",
        seam: "linear layers over NF4",
        formula: "r (in + out) per target",
        start: Start::Identity,
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
                block_size: 32,
                double_quant: false,
                ..Self::default()
            },
            Self {
                rank: 2,
                targets: Targets::One("down".into()),
                ..Self::default()
            },
        ]
    }
}

impl Method for Qlora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        self.nf4().check()?;
        self.lora().check(geometry)
    }

    fn storage(&self) -> Option<Box<dyn Storage>> {
        Some(Box::new(self.nf4()))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        self.lora().project(site, base, init)
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.lora().parameters(geometry)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        self.lora().peft(geometry)
    }

    fn size(&self) -> Option<u64> {
        self.lora().size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed_linear::PackedLinear;
    use peft_core::contract::ContractHost;
    use peft_core::toy::Toy;
    use peft_core::{Host, Surgeon, adapt};

    peft_core::contract_tests!(Qlora);

    #[test]
    fn the_defaults_are_every_linear_layer_over_doubly_quantised_blocks_of_64() {
        let qlora: Qlora = serde_json::from_str("{}").unwrap();
        assert_eq!(qlora.targets, Targets::all_linear());
        assert_eq!(qlora.nf4(), Nf4::new(64, true));
        assert_eq!(qlora.lora().rank, Lora::default().rank);
    }

    #[test]
    fn a_block_size_that_bitsandbytes_does_not_know_is_refused_by_name() {
        let mut init = Init::new(0, &burn::tensor::Device::flex());
        let toy = Toy::build(&mut init);
        let error = Qlora {
            block_size: 48,
            ..Qlora::default()
        }
        .check(&toy.geometry())
        .unwrap_err();
        assert!(error.to_string().contains("`block_size` is 48"), "{error}");
    }

    #[test]
    fn layers_that_are_no_target_are_packed_all_the_same() {
        struct CountPacked(usize);
        impl Surgeon for CountPacked {
            fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
                self.0 += usize::from(base.downcast_ref::<PackedLinear>().is_some());
                base
            }
        }
        let mut init = Init::new(0, &burn::tensor::Device::flex());
        let toy = Toy::build(&mut init);
        let qlora = Qlora {
            targets: Targets::One("down".into()),
            ..Qlora::default()
        };
        let adapted = adapt(toy, &qlora, None, &mut init).unwrap();
        let mut count = CountPacked(0);
        adapted.host.rebuild(&mut count);
        assert_eq!(count.0, 2 * 5);
    }
}
