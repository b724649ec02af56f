//! What Compacter and Compacter++ share: the configuration, the counting, and the form AdapterHub
//! gives them. A method's own file says where its bottleneck sits.

use std::marker::PhantomData;

use peft_core::{
    Activation, CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Role,
    Rule, SharedSlot, TapSite, TapSlot, check,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::adapter::{Adapter, Kind, ReductionFactor};
use crate::bottleneck::Scaling;
use crate::hub;
use crate::phm::{PhmBottleneck, PhmRule, PhmShape};

/// Where a kind of hypercomplex adapter sits.
pub trait PhmKind: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// What the registry says of it.
    const INFO: MethodInfo;
    /// The plain adapter that sits in the same places.
    type Plain: Kind;

    /// The bottleneck in its place.
    fn slot(adapter: PhmBottleneck) -> TapSlot;
}

/// Configuration of a hypercomplex adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound = "")]
pub struct PhmAdapter<K: PhmKind> {
    /// Width of the bottleneck; or give `reduction_factor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<usize>,
    /// The model's width over the bottleneck's, 32 where neither is given: one number, or a table
    /// from layers to numbers with the key `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction_factor: Option<ReductionFactor>,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's output while training.
    pub dropout: f64,
    /// Factor on the bottleneck's output: a number, `"learned"`, or `"channel"` for one a feature.
    pub scaling: Scaling,
    /// Number of Kronecker products a layer is the sum of, a divisor of both its widths.
    pub phm_dim: usize,
    /// Rank of their right-hand factors.
    pub phm_rank: usize,
    /// Whether all layers share their left-hand factors.
    pub shared_phm_rule: bool,
    /// Deviation of shared left-hand factors at the start.
    pub phm_init_range: f64,
    /// Layers that get no adapter, from 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leave_out: Vec<usize>,
    #[doc(hidden)]
    #[serde(skip)]
    pub kind: PhantomData<K>,
}

impl<K: PhmKind> Default for PhmAdapter<K> {
    fn default() -> Self {
        Self {
            bottleneck: None,
            reduction_factor: None,
            non_linearity: Activation::Gelu,
            dropout: 0.0,
            scaling: Scaling::Fixed(1.0),
            phm_dim: 4,
            phm_rank: 1,
            shared_phm_rule: true,
            phm_init_range: 1e-4,
            leave_out: Vec::new(),
            kind: PhantomData,
        }
    }
}

impl<K: PhmKind> PhmAdapter<K> {
    /// The plain adapter of the same widths in the same places.
    fn plain(&self) -> Adapter<K::Plain> {
        let factor = match self.bottleneck {
            Some(_) => None,
            None => Some(ReductionFactor::Whole(32)),
        };
        Adapter {
            bottleneck: self.bottleneck,
            reduction_factor: self.reduction_factor.clone().or(factor),
            non_linearity: self.non_linearity,
            dropout: self.dropout,
            scaling: self.scaling,
            leave_out: self.leave_out.clone(),
            ..Adapter::default()
        }
    }

    fn shape(&self, layer: usize, d: usize) -> Result<PhmShape, CoreError> {
        let m = self.plain().width(layer, d)?;
        let n = self.phm_dim;
        if n > 0 && d.is_multiple_of(n) && m.is_multiple_of(n) {
            return Ok(PhmShape {
                d,
                m,
                n,
                rank: self.phm_rank,
                shared_rule: self.shared_phm_rule,
            });
        }
        let expected = format!("a divisor of the widths {d} and {m}");
        Err(CoreError::bad_value("phm_dim", n, &expected))
    }

    /// The tensors of one linear layer of a bottleneck.
    fn linear_rules(&self, ours: &str, theirs: &str) -> Vec<Rule> {
        let own = (!self.shared_phm_rule).then_some(("rule", "phm_rule"));
        let leaves = [("left", "W_left"), ("right", "W_right"), ("bias", "b")];
        let leaves = leaves.into_iter().chain(own);
        let rule = |(a, b)| Rule::as_is(format!("{ours}.{a}"), format!("{theirs}.{b}"));
        leaves.map(rule).collect()
    }

    fn rules(&self, geometry: &Geometry, name: &str) -> Vec<Rule> {
        let plain = self.plain();
        let mut rules = Vec::new();
        for tap in plain.places(geometry) {
            let ours = format!("{}/adapter", tap.path);
            let theirs = format!("{}.adapters.{name}", tap.path);
            for (a, b) in [("down", "adapter_down.0"), ("up", "adapter_up")] {
                rules.extend(self.linear_rules(&format!("{ours}.{a}"), &format!("{theirs}.{b}")));
            }
            if matches!(self.scaling, Scaling::Learned(_)) {
                rules.push(Rule::as_is(
                    format!("{ours}.scaling"),
                    format!("{theirs}.scaling"),
                ));
            }
        }
        if self.shared_phm_rule {
            let key = format!("{}shared_parameters.{name}.phm_rule", hub::body(geometry));
            rules.push(Rule::as_is("shared/rule", key));
        }
        rules
    }
}

impl<K: PhmKind> MethodConfig for PhmAdapter<K> {
    const INFO: MethodInfo = K::INFO;

    fn examples() -> Vec<Self> {
        vec![
            Self {
                bottleneck: Some(4),
                phm_dim: 2,
                ..Self::default()
            },
            Self {
                bottleneck: Some(4),
                phm_rank: 2,
                shared_phm_rule: false,
                scaling: Scaling::learned(),
                ..Self::default()
            },
        ]
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        _geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        if fields.peek("phm_layer") != true || !hub::fits::<K::Plain>(fields) {
            return Ok(None);
        }
        fields.ignore(&["phm_layer", "phm_c_init", "hypercomplex_nonlinearity"]);
        fields.allow("factorized_phm_W", &[true.into()])?;
        for off in ["factorized_phm_rule", "shared_W_phm"] {
            fields.allow(off, &[false.into()])?;
        }
        for on in ["phm_bias", "learn_phm"] {
            fields.allow(on, &[true.into()])?;
        }
        fields.allow("stochastic_depth", &[0.into()])?;
        let own = Self {
            phm_dim: fields.take("phm_dim")?.unwrap_or(4),
            phm_rank: fields.take("phm_rank")?.unwrap_or(1),
            shared_phm_rule: fields.take("shared_phm_rule")?.unwrap_or(true),
            phm_init_range: fields.take("phm_init_range")?.unwrap_or(1e-4),
            ..Self::default()
        };
        let plain = hub::frame::<K::Plain>(fields)?;
        Ok(Some(Self {
            reduction_factor: plain.reduction_factor,
            non_linearity: plain.non_linearity,
            dropout: plain.dropout,
            scaling: plain.scaling,
            leave_out: plain.leave_out,
            ..own
        }))
    }
}

impl<K: PhmKind> Method for PhmAdapter<K> {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        self.plain().check(geometry)?;
        check::size("phm_rank", self.phm_rank)?;
        if !(self.phm_init_range >= 0.0 && self.phm_init_range.is_finite()) {
            let expected = "a number from 0 up";
            return Err(CoreError::bad_value(
                "phm_init_range",
                self.phm_init_range,
                expected,
            ));
        }
        let mut kept = (0..geometry.layers).filter(|layer| !self.leave_out.contains(layer));
        kept.try_for_each(|layer| self.shape(layer, geometry.width).map(|_| ()))
    }

    fn shared(&self, _geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let rule = |init| PhmRule::new(self.phm_dim, self.phm_init_range, init);
        self.shared_phm_rule.then(|| SharedSlot::new(rule(init)))
    }

    fn tap(&self, layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        if !self.plain().sits_on(layer, role) {
            return None;
        }
        let shape = self.shape(layer, d).ok()?;
        let adapter = PhmBottleneck::new(shape, self.non_linearity, self.scaling, init);
        Some(K::slot(adapter.with_dropout(self.dropout)))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let each = |tap: &TapSite| match self.shape(tap.layer, geometry.width) {
            Ok(shape) => PhmBottleneck::parameters(shape, self.scaling),
            Err(_) => 0,
        };
        let shared = match self.shared_phm_rule {
            true => self.phm_dim.pow(3),
            false => 0,
        };
        self.plain().places(geometry).map(each).sum::<usize>() + shared
    }

    fn size(&self) -> Option<u64> {
        self.bottleneck.map(|m| m as u64)
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        let mut form = hub::write(&self.plain(), geometry, name);
        let own = json!({
            "phm_layer": true, "phm_dim": self.phm_dim, "phm_rank": self.phm_rank,
            "shared_phm_rule": self.shared_phm_rule, "phm_init_range": self.phm_init_range,
            "init_weights": "bert",
        });
        if let Value::Object(own) = own {
            form.fields.extend(own);
        }
        form.rules = self.rules(geometry, name);
        Some(form)
    }
}
