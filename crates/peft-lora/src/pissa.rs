//! PiSSA: LoRA that trains the principal part of the weight and freezes the rest.
//!
//! Paper: Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of
//! Large Language Models", arXiv 2404.02948.
//! Seam: linear layers. `A` and `B` start as the `rank` largest singular values and their vectors,
//! which the frozen weight is left without; see [`split`]. Over packed weights (QPiSSA) the rest is
//! what is packed: it is narrower than the whole, and loses less. The paper takes `alpha = rank`; with
//! a larger scaling the same rate moves the update further.
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
    /// Configuration of PiSSA, `kind = "pissa"`.
    Pissa {
        /// Rounds of a search for the principal part, 4 to 16, in place of the whole singular value
        /// decomposition, which takes seconds for a matrix of 768 x 2304.
        #[serde(skip_serializing_if = "Option::is_none")]
        niter: Option<usize>,
    }
}

/// The most rounds that make sense; a search that slow is no shortcut.
const MOST_ROUNDS: usize = 1000;

impl MethodConfig for Pissa {
    const INFO: MethodInfo = MethodInfo {
        kind: "pissa",
        name: "PiSSA",
        paper: "Meng et al. 2024, arXiv 2404.02948",
        seam: "linear layers",
        formula: "r (in + out) per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Pissa {
                rank: 2,
                alpha: 4.0,
                ..Self::default()
            },
            Pissa {
                rank: 3,
                rslora: true,
                niter: Some(4),
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        Ok(split::from_peft(fields, geometry, "pissa")?.map(Self::from))
    }
}

impl Method for Pissa {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if let Some(rounds) = self.niter.filter(|rounds| *rounds > MOST_ROUNDS) {
            let expected = format!("at most {MOST_ROUNDS}, or left out");
            return Err(CoreError::bad_value("niter", rounds, &expected));
        }
        split::check(&self.lora(), geometry)
    }

    fn splits(&self) -> bool {
        true
    }

    fn split(&self, site: &Site, base: &Proj, store: Store<'_>) -> Result<Option<Proj>, CoreError> {
        if !self.targets.contains(site) {
            return Ok(None);
        }
        split::split(&self.lora(), site, base, store, |weight, rank, scaling| {
            // The scaling is taken out of both factors alike.
            factor::principal(weight, rank, self.niter).scaled((1.0 / scaling).sqrt())
        })
        .map(Some)
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
    use crate::family::testing::{device, largest, site};
    use crate::lora::LoraLinear;
    use burn::module::Module;
    use burn::tensor::Tensor;
    use peft_core::contract::random;
    use peft_core::{Dense, Pass, Role};

    peft_core::contract_tests!(Pissa);

    fn split(pissa: &Pissa, weight: &Tensor<2>) -> Proj {
        let [d_in, d_out] = weight.dims();
        let base = Proj::new(Dense::new(weight.clone(), None).no_grad());
        let store = |dense| Ok(Proj::new(dense));
        let site = site(Role::Query, d_in, d_out);
        pissa.split(&site, &base, &store).unwrap().unwrap()
    }

    #[test]
    fn the_update_is_the_principal_part_of_the_weight() {
        let weight = random([12, 9], &device());
        let best = factor::principal(&weight, 3, None).product();
        for (alpha, rslora) in [(6.0, false), (5.0, true)] {
            let pissa = Pissa {
                rank: 3,
                alpha,
                rslora,
                ..Pissa::default()
            };
            let proj = split(&pissa, &weight);
            let pass = Pass::new();
            assert!(largest(proj.weight(&pass) - weight.clone()) < 1e-5);
            let layer: &LoraLinear = proj.downcast_ref().unwrap();
            let rest = layer.base.weight(&pass);
            assert!(largest(weight.clone() - rest - best.clone()) < 1e-4);
        }
    }

    #[test]
    fn a_scaling_that_is_not_positive_is_refused() {
        let toy = <peft_core::toy::Toy as peft_core::contract::ContractHost>::build(
            &mut peft_core::Init::new(0, &burn::tensor::Device::flex()),
        );
        let geometry = peft_core::Host::geometry(&toy);
        let refused = |alpha| {
            let pissa = Pissa {
                alpha,
                rank: 2,
                ..Pissa::default()
            };
            pissa.check(&geometry).unwrap_err().to_string()
        };
        for alpha in [0.0, -1.0, f64::NAN] {
            let error = refused(alpha);
            assert!(error.contains("`alpha` is"), "{error}");
        }
    }
}
