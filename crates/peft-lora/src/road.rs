//! RoAd: the output's features turned and stretched in pairs.
//!
//! Paper: Liao and Monz 2024, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient
//! Batching and Composability", NeurIPS, arXiv 2409.00119.
//! Seam: linear layers. `y' = (x W + b) R`: in every group of `group_size` outputs, one of the first
//! half and one of the second become `(a cos t) y1 - (a sin t) y2` and `(a sin t) y1 + (a cos t) y2`,
//! with an angle `t` and a factor `a` for each pair, each output or each number, by the variant.
//! Starts as HF PEFT does: angles 0, factors 1.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Dense, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass,
    Proj, Projection, Rule, Site, Start, Targets, check, exchange::peft_targets,
};
use serde::{Deserialize, Serialize};

use crate::family::{key, peft_targets_of, place, selected};

/// Configuration of RoAd, `kind = "road"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Road {
    /// What has an angle and a factor of its own.
    pub variant: Variant,
    /// Outputs of a group, whose halves are paired; it divides the outputs of every target.
    pub group_size: usize,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for Road {
    fn default() -> Self {
        Self {
            variant: Variant::Road1,
            group_size: 64,
            targets: Targets::Default,
        }
    }
}

/// What has an angle and a factor of its own in [`Road`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variant {
    /// Every pair of outputs.
    #[serde(rename = "road_1")]
    Road1,
    /// Every output.
    #[serde(rename = "road_2")]
    Road2,
    /// Every number of the two by two matrices.
    #[serde(rename = "road_4")]
    Road4,
}

impl Variant {
    /// How many angles (and factors) a layer has.
    fn angles(self, d_out: usize) -> usize {
        match self {
            Variant::Road1 => d_out / 2,
            Variant::Road2 => d_out,
            Variant::Road4 => 2 * d_out,
        }
    }
}

impl MethodConfig for Road {
    const INFO: MethodInfo = MethodInfo {
        kind: "road",
        name: "RoAd",
        paper: "Liao and Monz 2024, arXiv 2409.00119",
        seam: "linear layers",
        formula: "out, 2 out or 4 out per target",
        start: Start::Identity,
        mergeable: true,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        let of = |variant| Road {
            variant,
            group_size: 4,
            targets: Targets::all_linear(),
        };
        vec![of(Variant::Road1), of(Variant::Road2), of(Variant::Road4)]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "ROAD" {
            return Ok(None);
        }
        fields.ignore(&["init_weights"]);
        Ok(Some(Road {
            targets: peft_targets_of(fields, geometry)?,
            variant: fields.take("variant")?.unwrap_or(Variant::Road1),
            group_size: fields.take("group_size")?.unwrap_or(64),
        }))
    }
}

impl Method for Road {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        let group = self.group_size;
        check::size("group_size", group)?;
        if !group.is_multiple_of(2) {
            let expected = "an even number: its halves are paired";
            return Err(CoreError::bad_value("group_size", group, expected));
        }
        for site in self.targets.select(&geometry.sites)? {
            if !site.d_out.is_multiple_of(group) {
                let (d_out, path) = (site.d_out, &site.path);
                let expected = format!("a divisor of the {d_out} outputs of `{path}`");
                return Err(CoreError::bad_value("group_size", group, &expected));
            }
        }
        Ok(())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let angles = self.variant.angles(site.d_out);
        Proj::new(RoadLinear {
            theta: Param::from_tensor(init.zeros([angles])),
            alpha: Param::from_tensor(init.full([angles], 1.0)),
            variant: self.variant,
            half: self.group_size / 2,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites.map(|site| 2 * self.variant.angles(site.d_out)).sum()
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT's layer is one of PyTorch's `Linear` only.
        if geometry.keeps_weights_in_out() {
            return None;
        }
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "ROAD", "variant": self.variant, "group_size": self.group_size,
            "target_modules": peft_targets(&sites, geometry), "init_weights": true,
        });
        let rules = sites.iter().flat_map(|site| {
            ["theta", "alpha"]
                .map(|name| Rule::as_is(place(site, name), key(site, &format!("road_{name}"))))
        });
        Some(Foreign::new(fields, rules.collect()))
    }
}

/// A linear layer whose outputs are turned in pairs.
#[derive(Module, Debug)]
pub struct RoadLinear {
    base: Proj,
    /// `[angles]`
    theta: Param<Tensor<1>>,
    /// `[angles]`
    alpha: Param<Tensor<1>>,
    #[module(skip)]
    variant: Variant,
    half: usize,
}

impl RoadLinear {
    /// The factor on each output and that on its partner, both `[d_out]`; those of the first half of
    /// a group take the sign that its turn has there.
    fn factors(&self) -> (Tensor<1>, Tensor<1>) {
        let (own, partners) = self.unsigned_factors();
        let (_, d_out) = self.base.dims();
        let halves = partners.reshape([d_out / (2 * self.half), 2, self.half]);
        let [first, second] = [0, 1].map(|at| halves.clone().narrow(1, at, 1));
        let signed = Tensor::cat(vec![first.neg(), second], 1);
        (own, signed.reshape([d_out]))
    }

    fn unsigned_factors(&self) -> (Tensor<1>, Tensor<1>) {
        let (cos, sin) = (self.theta.val().cos(), self.theta.val().sin());
        let (alpha, (_, d_out)) = (self.alpha.val(), self.base.dims());
        match self.variant {
            Variant::Road1 => {
                // Both halves of a group share their numbers.
                let both = |values: Tensor<1>| {
                    let groups = values.reshape([d_out / (2 * self.half), 1, self.half]);
                    groups.repeat_dim(1, 2).reshape([d_out])
                };
                (both(alpha.clone() * cos), both(alpha * sin))
            }
            Variant::Road2 => (alpha.clone() * cos, alpha * sin),
            Variant::Road4 => {
                // A group's numbers for the outputs themselves, then those for their partners.
                let part = |values: Tensor<1>, at| {
                    let groups = values.reshape([d_out / (2 * self.half), 2, 2 * self.half]);
                    groups.narrow(1, at, 1).reshape([d_out])
                };
                (part(alpha.clone() * cos, 0), part(alpha * sin, 1))
            }
        }
    }

    /// Turns the last axis.
    fn turn<const D: usize>(&self, y: Tensor<D>) -> Tensor<D> {
        let (own, partners) = self.factors();
        let (shape, (_, d_out)) = (y.dims(), self.base.dims());
        let rows = shape.iter().product::<usize>() / d_out;
        let pairs = y
            .clone()
            .reshape([rows, d_out / (2 * self.half), 2, self.half]);
        let second = pairs.clone().narrow(2, 1, 1);
        let partner = Tensor::cat(vec![second, pairs.narrow(2, 0, 1)], 2).reshape(shape);
        y * own.unsqueeze() + partner * partners.unsqueeze()
    }
}

impl Projection for RoadLinear {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.turn(self.base.forward(x, pass))
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.turn(self.base.weight(pass))
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias().map(|bias| self.turn(bias))
    }

    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Some(Dense::new(self.weight(pass), self.bias()))
    }

    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }

    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, device, site, stirred};
    use burn::tensor::TensorData;
    use peft_core::Role;

    peft_core::contract_tests!(Road);

    fn values(tensor: Tensor<1>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    /// The turn as a matrix from the numbers of each output, in groups of 4 of 8 outputs.
    fn matrix(numbers: impl Fn(usize) -> [(f32, f32); 2]) -> Tensor<2> {
        let mut matrix = vec![0.0; 64];
        for out in 0..8 {
            let (first, partner) = (out % 4 < 2, ((out / 2) ^ 1) * 2 + out % 2);
            let [(alpha, theta), (partners_alpha, partners_theta)] = numbers(out);
            let sign = if first { -1.0 } else { 1.0 };
            matrix[out * 8 + out] = alpha * theta.cos();
            matrix[partner * 8 + out] = sign * partners_alpha * partners_theta.sin();
        }
        Tensor::from_data(TensorData::new(matrix, [8, 8]), &device())
    }

    fn check_variant(variant: Variant, at: fn(usize) -> [usize; 2]) {
        let road = Road {
            variant,
            group_size: 4,
            ..Road::default()
        };
        let proj = stirred(&road, &site(Role::Query, 5, 8));
        let layer: &RoadLinear = proj.downcast_ref().unwrap();
        let (alpha, theta) = (values(layer.alpha.val()), values(layer.theta.val()));
        let turn = matrix(|out| at(out).map(|at| (alpha[at], theta[at])));
        let pass = Pass::new();
        let weight = layer.base.weight(&pass).matmul(turn.clone());
        let bias = layer.base.bias().unwrap().unsqueeze::<2>().matmul(turn);
        computes(&proj, &pass, weight, bias.squeeze_dim(0));
    }

    #[test]
    fn every_variant_is_a_matrix_of_two_by_two_blocks() {
        check_variant(Variant::Road1, |out| [out / 4 * 2 + out % 2; 2]);
        check_variant(Variant::Road2, |out| [out; 2]);
        check_variant(Variant::Road4, |out| {
            let first = out / 4 * 8 + out % 4;
            [first, first + 4]
        });
    }
}
