//! OLoRA: LoRA that starts at the head of the weight's QR decomposition, the frozen weight being left
//! without it.
//!
//! Paper: Büyükakyüz 2024, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models",
//! arXiv 2406.01775.
//! Seam: linear layers. `B` starts as `rank` orthonormal rows, `A` as the weight in their space, as
//! in HF PEFT: the decomposition is that of the weight as PyTorch keeps it, `[out, in]`, and the
//! update starts as `scaling` times the product; see [`split`].
//! Differs from: HF PEFT writes such adapters for readers that repeat the decomposition; here they
//! are written as the plain LoRA that PEFT converts them to. Both are read.

use peft_core::{
    CoreError, Fields, Foreign, Geometry, Method, MethodConfig, MethodInfo, Proj, Site, Start,
    Store, Targets,
};

use crate::factor;
use crate::family::lora_variant;
use crate::lora::{peft, split};

lora_variant! {
    /// Configuration of OLoRA, `kind = "olora"`.
    Olora {}
}

impl MethodConfig for Olora {
    const INFO: MethodInfo = MethodInfo {
        kind: "olora",
        name: "OLoRA",
        paper: "Büyükakyüz 2024, arXiv 2406.01775",
        seam: "linear layers",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Olora {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Olora {
                rank: 3,
                alpha: 2.0,
                rslora: true,
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        let read = split::from_peft(fields, geometry, "olora")?;
        if read.is_some() && geometry.keeps_weights_in_out() {
            // There PEFT decomposes the transposed matrix and its factors do not fit the layer.
            let expected = "plain: this start is broken in HF PEFT where weights are `[in, out]`";
            return Err(fields.unsupported("init_lora_weights", &"olora".into(), expected));
        }
        Ok(read.map(Self::from))
    }
}

impl Method for Olora {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        split::check(&self.lora(), geometry)
    }

    fn splits(&self) -> bool {
        true
    }

    fn split(&self, site: &Site, base: &Proj, store: Store<'_>) -> Result<Option<Proj>, CoreError> {
        if !self.targets.contains(site) {
            return Ok(None);
        }
        let factors = |weight: &_, rank, _| factor::first_rows(weight, rank);
        split::split(&self.lora(), site, base, store, factors).map(Some)
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.lora().parameters(geometry)
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    /// The form is that of the settled model: LoRA of twice the rank.
    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        Some(peft::write(&split::converted(&self.lora()), geometry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Olora);
}
