//! (IA)^3: a trained factor on every feature of keys, values and the feed-forward block.
//!
//! Paper: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
//! In-Context Learning", arXiv 2205.05638.
//! Seam: linear layers. `y = (x W + b) * l`, and `y = (x * l) W + b` on the layers that read the
//! feed-forward activation. The factors start at one.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Dense, Fields, Foreign, Form, Geometry, Init, Method, MethodConfig, MethodInfo,
    Pass, Proj, Projection, Reweighted, Role, Rule, Site, Start, Targets, exchange::peft_targets,
};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::family::{key, peft_targets_of, place};

/// Configuration of (IA)^3, `kind = "ia3"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ia3 {
    /// Which linear layers; where none are named, keys and values (or the fused projection) and
    /// the last linear of the feed-forward block.
    pub targets: Targets,
    /// Which of the targets have the factors on their input; where none are named, the last linear
    /// of the feed-forward block.
    pub feedforward: Targets,
}

/// The side of a layer its factors are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

impl Ia3 {
    /// The side the layer's factors are on, if it is a target.
    fn side(&self, site: &Site) -> Option<Side> {
        let targeted = match &self.targets {
            Targets::Default => matches!(
                site.role,
                Role::Key | Role::Value | Role::FusedQkv | Role::Down
            ),
            named => named.contains(site),
        };
        let feedforward = match &self.feedforward {
            Targets::Default => site.role == Role::Down,
            named => named.contains(site),
        };
        let side = if feedforward {
            Side::Input
        } else {
            Side::Output
        };
        targeted.then_some(side)
    }

    fn selected<'a>(&'a self, geometry: &'a Geometry) -> impl Iterator<Item = (&'a Site, Side)> {
        let sites = geometry.sites.iter();
        sites.filter_map(|site| Some((site, self.side(site)?)))
    }
}

/// Number of factors of a layer.
fn width(site: &Site, side: Side) -> usize {
    match side {
        Side::Input => site.d_in,
        Side::Output => site.d_out,
    }
}

impl MethodConfig for Ia3 {
    const INFO: MethodInfo = MethodInfo {
        kind: "ia3",
        name: "(IA)^3",
        paper: "Liu et al. 2022, arXiv 2205.05638",
        seam: "linear layers",
        formula: "out per target, in per feed-forward target",
        start: Start::Identity,
        mergeable: true,
        size_key: None,
    };

    fn examples() -> Vec<Self> {
        vec![
            Self::default(),
            Self {
                targets: Targets::all_linear(),
                feedforward: Targets::Many(Vec::new()),
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "IA3" {
            return Ok(None);
        }
        fields.allow("init_ia3_weights", &[true.into(), false.into()])?;
        let inputs = fields.take("feedforward_modules")?.unwrap_or(Value::Null);
        let targets = peft_targets_of(fields, geometry)?;
        let feedforward = feedforward(&inputs, fields, geometry)?;
        Ok(Some(Self {
            targets,
            feedforward,
        }))
    }
}

/// The feed-forward layers as PEFT finds them: by any end of a path, also within a component, or
/// by a regular expression for the whole path.
fn feedforward(wanted: &Value, fields: &Fields, geometry: &Geometry) -> Result<Targets, CoreError> {
    let key = "feedforward_modules";
    let (names, pattern): (Vec<String>, Option<Regex>) = match wanted {
        Value::Null => (Vec::new(), None),
        Value::String(pattern) => {
            let regex = Regex::new(&format!("^(?:{pattern})$"));
            let regex =
                regex.map_err(|_| fields.unsupported(key, wanted, "a regular expression"))?;
            (Vec::new(), Some(regex))
        }
        list => {
            let names = serde_json::from_value(list.clone());
            let expected = "a list of module names";
            (
                names.map_err(|_| fields.unsupported(key, list, expected))?,
                None,
            )
        }
    };
    let theirs = |site: &&Site| {
        let named = names.iter().any(|name| site.path.ends_with(name.as_str()));
        named || pattern.as_ref().is_some_and(|p| p.is_match(&site.path))
    };
    let paths = || geometry.sites.iter().filter(theirs);
    let short = Targets::Many(names.clone());
    let same = geometry
        .sites
        .iter()
        .all(|s| theirs(&s) == short.contains(s));
    Ok(match same {
        true => short,
        false => Targets::Many(paths().map(|site| site.path.clone()).collect()),
    })
}

impl Method for Ia3 {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        // The defaults fit every model; names must match.
        let named = [&self.targets, &self.feedforward];
        for targets in named.into_iter().filter(|t| !t.names().is_empty()) {
            targets.select(&geometry.sites)?;
        }
        if self.selected(geometry).next().is_none() {
            let expected = "at least one linear layer";
            return Err(CoreError::bad_value("targets", "[]", expected));
        }
        Ok(())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        let Some(side) = self.side(site) else {
            return base;
        };
        let factors = Param::from_tensor(init.full([width(site, side)], 1.0));
        match side {
            Side::Input => Proj::new(Ia3Input { base, factors }),
            Side::Output => Proj::new(Ia3Output { base, factors }),
        }
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.selected(geometry)
            .map(|(site, side)| width(site, side))
            .sum()
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let of = |wanted: Side| -> Vec<&Site> {
            let own = self.selected(geometry).filter(|(_, side)| *side == wanted);
            own.map(|(site, _)| site).collect()
        };
        let feedforward = peft_targets(&of(Side::Input), geometry);
        let mut targets = peft_targets(&of(Side::Output), geometry);
        targets.extend(feedforward.clone());
        let fields = serde_json::json!({
            "peft_type": "IA3", "target_modules": targets, "feedforward_modules": feedforward,
            "fan_in_fan_out": geometry.keeps_weights_in_out(), "init_ia3_weights": true,
        });
        let rules = self.selected(geometry).map(|(site, side)| {
            let n = width(site, side);
            let theirs = match side {
                Side::Input => vec![1, n],
                Side::Output => vec![n, 1],
            };
            let form = Form::Shaped {
                ours: vec![n],
                theirs,
            };
            Rule::new(place(site, "factors"), key(site, "ia3_l"), form)
        });
        Some(Foreign::new(fields, rules.collect()))
    }
}

/// A linear layer with a trained factor on every output.
#[derive(Module, Debug)]
pub struct Ia3Output {
    base: Proj,
    /// `[d_out]`
    factors: Param<Tensor<1>>,
}

impl Projection for Ia3Output {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.base.forward(x, pass) * self.factors.val().unsqueeze()
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) * self.factors.val().unsqueeze()
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias().map(|bias| bias * self.factors.val())
    }

    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Some(Dense::new(self.weight(pass), self.bias()))
    }

    fn base(&self) -> Option<&Proj> {
        Some(&self.base)
    }
    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}

/// A linear layer with a trained factor on every input.
#[derive(Module, Debug)]
pub struct Ia3Input {
    base: Proj,
    /// `[d_in]`
    factors: Param<Tensor<1>>,
}

impl Reweighted for Ia3Input {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.base.forward(x * self.factors.val().unsqueeze(), pass)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) * self.factors.val().unsqueeze_dim(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, site, stirred};

    peft_core::contract_tests!(Ia3);

    #[test]
    fn factors_are_on_the_output_of_keys_and_on_the_input_of_the_last_feed_forward_linear() {
        let pass = Pass::new();
        let key = stirred(&Ia3::default(), &site(Role::Key, 6, 5));
        let layer: &Ia3Output = key.downcast_ref().unwrap();
        let (base, l) = (&layer.base, layer.factors.val());
        let weight = base.weight(&pass).matmul(diagonal(l.clone()));
        computes(&key, &pass, weight, base.bias().unwrap() * l);

        let down = stirred(&Ia3::default(), &site(Role::Down, 6, 5));
        let layer: &Ia3Input = down.downcast_ref().unwrap();
        let weight = diagonal(layer.factors.val()).matmul(layer.base.weight(&pass));
        computes(&down, &pass, weight, layer.base.bias().unwrap());
    }

    fn diagonal(values: Tensor<1>) -> Tensor<2> {
        Tensor::<2>::eye(values.dims()[0], &values.device()) * values.unsqueeze()
    }

    #[test]
    fn layers_that_are_no_targets_stay_as_they_are() {
        let query = stirred(&Ia3::default(), &site(Role::Query, 6, 5));
        assert!(query.downcast_ref::<Dense>().is_some());
    }
}
