//! LoRA-FA: LoRA whose projection down stays as it was drawn.
//!
//! Paper: Zhang et al. 2023, "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language
//! Models Fine-tuning", arXiv 2308.03303.
//! Seam: linear layers. `y = x W + b + scaling * dropout(x) A B` with `A` frozen at its
//! Kaiming-uniform start, so that no layer keeps its wide input for the backward pass.
//! HF PEFT has it as an optimizer over LoRA: its files are LoRA's, and are read as such.

use peft_core::{
    CoreError, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Proj, Site, Start,
    Targets,
};

use crate::family::lora_variant;
use crate::lora::{LoraLinear, peft};

lora_variant! {
    /// Configuration of LoRA-FA, `kind = "lora_fa"`.
    LoraFa {}
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
                ..Self::default()
            },
        ]
    }
}

impl Method for LoraFa {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        // Unlike LoRA's, the targets are linear layers only.
        self.targets.select(&geometry.sites)?;
        self.lora().check(geometry)
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let layer = LoraLinear::new(&self.lora(), site, base, init);
        Proj::new(layer.with_frozen_a())
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let lora = self.lora();
        lora.selected(geometry)
            .map(|site| self.rank * site.d_out)
            .sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        Some(peft::write(&self.lora(), geometry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{site, stirred};
    use peft_core::{Role, state};

    peft_core::contract_tests!(LoraFa);

    #[test]
    fn only_the_projection_up_is_trained() {
        let layer = stirred(&LoraFa::default(), &site(Role::Query, 6, 5));
        let trained = state::trained_tensors(&layer);
        assert_eq!(trained.keys().collect::<Vec<_>>(), ["b"]);
    }
}
