//! LoKr: a Kronecker product of a small matrix and a (low-rank) larger one.
//!
//! Paper: Edalati et al. 2022, "KronA: Parameter Efficient Tuning with Kronecker Adapter",
//! arXiv 2212.10650; with the factorisations here: LyCORIS (Yeh et al. 2023, 2309.14859).
//! Seam: linear layers. `y = x W + b + scaling * x (W1 (x) W2)` with `scaling = alpha / rank`;
//! `W1` and `W2` are products of rank `rank` where that makes them smaller.
//! Starts as HF PEFT does: `W1` (or its output side) zero, the rest Kaiming-uniform.
//!
//! The activations go through the two factors one after the other; the dense product is never
//! formed.

mod factor;

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, number, peft_targets_of, place, selected};
use factor::{Factor, Shape};

/// Configuration of LoKr, `kind = "lokr"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lokr {
    /// Rank of the factors that are products.
    pub rank: usize,
    /// Numerator of the scaling `alpha / rank`.
    pub alpha: f64,
    /// Whether the small factor is a product as well, where that makes it smaller.
    pub decompose_both: bool,
    /// Sides of the small factor; none for the divisors nearest to the square root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decompose_factor: Option<usize>,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Lokr {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            decompose_both: false,
            decompose_factor: None,
            targets: Targets::Default,
        }
    }
}

impl Lokr {
    /// The shapes of a layer's small and large factor.
    fn shapes(&self, site: &Site) -> (Shape, Shape) {
        let (in_small, in_large) = factorised(site.d_in, self.decompose_factor);
        let (out_small, out_large) = factorised(site.d_out, self.decompose_factor);
        let shape = |d_in: usize, d_out: usize| Shape {
            d_in,
            d_out,
            rank: (2 * self.rank < d_in.max(d_out)).then_some(self.rank),
        };
        let small = shape(in_small, out_small);
        let rank = small.rank.filter(|_| self.decompose_both);
        (Shape { rank, ..small }, shape(in_large, out_large))
    }
}

/// Two factors of a number, the smaller first: the given one if it divides, otherwise the pair
/// with the smallest sum whose smaller number is at most the given one.
fn factorised(number: usize, wanted: Option<usize>) -> (usize, usize) {
    if let Some(wanted) = wanted.filter(|w| number.is_multiple_of(*w)) {
        // In this order even if the first is the larger one, as LyCORIS has it.
        return (wanted, number / wanted);
    }
    let limit = wanted.unwrap_or(number);
    let divisors = (1..=limit).take_while(|d| d * d <= number);
    let small = divisors.filter(|d| number.is_multiple_of(*d)).max();
    let small = small.unwrap_or(1);
    (small, number / small)
}

impl MethodConfig for Lokr {
    const INFO: MethodInfo = MethodInfo {
        kind: "lokr",
        name: "LoKr",
        paper: "Edalati et al. 2022, arXiv 2212.10650",
        seam: "linear layers",
        formula: "i o + r (in/i + out/o) per target, factors i of in and o of out",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("rank"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Lokr {
                rank: 1,
                alpha: 2.0,
                ..Self::default()
            },
            Lokr {
                rank: 1,
                decompose_both: true,
                decompose_factor: Some(4),
                targets: Targets::all_linear(),
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "LOKR" {
            return Ok(None);
        }
        // How dropped ranks are scaled says nothing without `rank_dropout`, which is refused.
        fields.ignore(&["init_weights", "use_effective_conv2d", "rank_dropout_scale"]);
        let factor: i64 = fields.take("decompose_factor")?.unwrap_or(-1);
        Ok(Some(Lokr {
            targets: peft_targets_of(fields, geometry)?,
            rank: fields.require("r")?,
            alpha: fields.take("alpha")?.unwrap_or(8.0),
            decompose_both: fields.take("decompose_both")?.unwrap_or(false),
            decompose_factor: usize::try_from(factor).ok(),
        }))
    }
}

impl Method for Lokr {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::rank(self.rank)?;
        finite("alpha", self.alpha)?;
        if self.decompose_factor == Some(0) {
            let expected = "at least 1, or left out for the square root";
            return Err(CoreError::bad_value("decompose_factor", 0, expected));
        }
        self.targets.select(&geometry.sites).map(|_| ())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let (small, large) = self.shapes(site);
        Proj::new(LokrLinear {
            small: Factor::zero(small, init),
            large: Factor::random(large, init),
            scaling: self.alpha / self.rank as f64,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let of = |site| {
            let (small, large) = self.shapes(site);
            small.parameters() + large.parameters()
        };
        selected(&self.targets, geometry).map(of).sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.rank as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT's layer is one of PyTorch's `Linear` only.
        if geometry.keeps_weights_in_out() {
            return None;
        }
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let factor = self.decompose_factor.map_or(-1, |factor| factor as i64);
        let fields = serde_json::json!({
            "peft_type": "LOKR", "r": self.rank, "alpha": number(self.alpha),
            "decompose_both": self.decompose_both, "decompose_factor": factor,
            "target_modules": peft_targets(&sites, geometry), "init_weights": true,
            "rank_dropout": 0.0, "rank_dropout_scale": false, "module_dropout": 0.0,
            "use_effective_conv2d": false, "rank_pattern": {}, "alpha_pattern": {},
        });
        let mut rules = Vec::new();
        for site in sites {
            let (small, large) = self.shapes(site);
            rules.extend(factor_rules(site, small, ["small", "lokr_w1"]));
            rules.extend(factor_rules(site, large, ["large", "lokr_w2"]));
        }
        Some(Foreign::new(fields, rules))
    }
}

/// The rules for a factor by our name and theirs.
fn factor_rules(site: &Site, shape: Shape, [ours, theirs]: [&str; 2]) -> Vec<Rule> {
    let rule =
        |ours: String, theirs: String| Rule::transposed(place(site, &ours), key(site, &theirs));
    match shape.rank {
        None => vec![rule(format!("{ours}.Whole"), theirs.into())],
        // Theirs is [out, in]: its first factor is on the output side.
        Some(_) => vec![
            rule(format!("{ours}.Product.a"), format!("{theirs}_b")),
            rule(format!("{ours}.Product.b"), format!("{theirs}_a")),
        ],
    }
}

/// A linear layer with a Kronecker product beside it.
#[derive(Module, Debug)]
pub struct LokrLinear {
    base: Proj,
    small: Factor,
    large: Factor,
    scaling: f64,
}

impl Reweighted for LokrLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        let [batch, seq, d_out] = y.dims();
        let ((in_small, _), (in_large, _)) = (self.small.dims(), self.large.dims());
        let x = x.reshape([batch * seq, in_small, in_large]);
        // From the left, so that no axes are exchanged: a third faster at widths of 768.
        let small = self.small.matrix().transpose().mul_scalar(self.scaling);
        let h = small.unsqueeze::<3>().matmul(self.large.apply(x));
        y + h.reshape([batch, seq, d_out])
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (d_in, d_out) = self.base.dims();
        let small = self
            .small
            .matrix()
            .unsqueeze_dim::<3>(1)
            .unsqueeze_dim::<4>(3);
        let large = self
            .large
            .matrix()
            .unsqueeze_dim::<3>(0)
            .unsqueeze_dim::<4>(2);
        let update = (small * large).reshape([d_in, d_out]);
        self.base.weight(pass) + update.mul_scalar(self.scaling)
    }
}

#[cfg(test)]
mod tests;
