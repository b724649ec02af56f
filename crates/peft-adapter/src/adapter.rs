//! What Houlsby, Pfeiffer and parallel adapters share: the configuration, the counting, and the
//! form AdapterHub gives them. A paper's own file says where its bottleneck sits.

mod reduction;

use std::collections::BTreeMap;
use std::marker::PhantomData;

use peft_core::{
    Activation, CoreError, EndsSlot, Fields, Foreign, Gate, Geometry, Init, Method, MethodConfig,
    MethodInfo, Role, Start, TapSite, TapSlot, check,
};
use serde::{Deserialize, Serialize};

use crate::bottleneck::{AdapterInit, Bottleneck, Scaling};
use crate::hub;
use crate::invertible::{InvAdapter, NiceCoupling};

pub use reduction::ReductionFactor;

/// Where a kind of adapter sits and how it starts: all that its paper's file says.
pub trait Kind: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// What the registry says of it.
    const INFO: MethodInfo;
    /// The sublayers it sits on.
    const ROLES: &'static [Role];
    /// Whether it reads what enters the sublayer, not what leaves it.
    const PARALLEL: bool;
    /// Whether it reads the residual sum, normalised in post-norm models.
    const READS_SUM: bool;
    /// The model's width over the bottleneck's where a configuration gives neither.
    const REDUCTION_FACTOR: usize;
    /// Between down and up where a configuration says nothing.
    const NON_LINEARITY: Activation;
    /// Factor on the bottleneck's output where a configuration says nothing.
    const SCALING: Scaling;
    /// How the weights start where a configuration says nothing.
    const INIT: AdapterInit;
    /// Probability that training leaves a row out where a configuration says nothing.
    const STOCHASTIC_DEPTH: f64 = 0.0;

    /// The bottleneck in its place.
    fn slot(adapter: Bottleneck) -> TapSlot;
}

/// Configuration of a bottleneck adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound = "")]
pub struct Adapter<K: Kind> {
    /// Width of the bottleneck; or give `reduction_factor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<usize>,
    /// The model's width over the bottleneck's: one number, or a table from layers to numbers with
    /// the key `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction_factor: Option<ReductionFactor>,
    /// Between down and up.
    pub non_linearity: Activation,
    /// Dropout on the adapter's output while training.
    pub dropout: f64,
    /// Factor on the bottleneck's output: a number, `"learned"`, or `"channel"` for one a feature.
    #[serde(skip_serializing_if = "Adapter::<K>::is_default_scaling")]
    pub scaling: Scaling,
    /// Factor on what the bottleneck's output is added to, likewise; 1 where not given.
    #[serde(skip_serializing_if = "is_one")]
    pub skip_scaling: Scaling,
    /// Probability that training leaves the bottleneck out, for a whole row of the batch.
    #[serde(skip_serializing_if = "Adapter::<K>::is_default_stochastic_depth")]
    pub stochastic_depth: f64,
    /// A trained gate on the bottleneck's output, one number for every text (see [`Gate`]).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gating: bool,
    /// Whether its mean is over padding too, as in AdapterHub; what is read from there says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub counts_padding: bool,
    /// How the weights start.
    pub init: AdapterInit,
    /// Layers that get no adapter, from 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leave_out: Vec<usize>,
    /// An invertible adapter behind the embedding and, inverted, before a language model's head:
    /// `"nice"` (MAD-X).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inv_adapter: Option<InvAdapter>,
    /// The invertible adapter's input width over that of its hidden layers, 2 where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inv_adapter_reduction_factor: Option<f64>,
    #[doc(hidden)]
    #[serde(skip)]
    pub kind: PhantomData<K>,
}

impl<K: Kind> Default for Adapter<K> {
    fn default() -> Self {
        Self {
            bottleneck: None,
            reduction_factor: None,
            non_linearity: K::NON_LINEARITY,
            dropout: 0.0,
            scaling: K::SCALING,
            skip_scaling: Scaling::Fixed(1.0),
            stochastic_depth: K::STOCHASTIC_DEPTH,
            gating: false,
            counts_padding: false,
            init: K::INIT,
            leave_out: Vec::new(),
            inv_adapter: None,
            inv_adapter_reduction_factor: None,
            kind: PhantomData,
        }
    }
}

fn is_one(scaling: &Scaling) -> bool {
    *scaling == Scaling::Fixed(1.0)
}

/// How often a factor goes into a width, as Python's `//` has it, from which AdapterHub's widths
/// come: 768 // 12.8 is 59, for 12.8 is a little more than twelve and four fifths.
pub(crate) fn floor_div(d: usize, factor: f64) -> f64 {
    let d = d as f64;
    ((d - d % factor) / factor).round()
}

impl<K: Kind> Adapter<K> {
    fn is_default_scaling(scaling: &Scaling) -> bool {
        *scaling == K::SCALING
    }

    fn is_default_stochastic_depth(probability: &f64) -> bool {
        *probability == K::STOCHASTIC_DEPTH
    }

    /// Width of the bottleneck in a layer of a model of width `d`.
    pub(crate) fn width(&self, layer: usize, d: usize) -> Result<usize, CoreError> {
        let factor = match (self.bottleneck, &self.reduction_factor) {
            (Some(_), Some(_)) => {
                let expected = "left out where `bottleneck` is given";
                return Err(CoreError::bad_value("reduction_factor", "given", expected));
            }
            (Some(m), None) => return check::size("bottleneck", m).map(|()| m),
            (None, Some(factor)) => factor.at(layer),
            (None, None) => Some(K::REDUCTION_FACTOR as f64),
        };
        let Some(factor) = factor else {
            let expected = format!("a table with the key `default` or `{layer}`");
            return Err(CoreError::bad_value(
                "reduction_factor",
                "a table",
                &expected,
            ));
        };
        let width = floor_div(d, factor);
        if factor.is_finite() && (1.0..=check::MOST as f64).contains(&width) {
            return Ok(width as usize);
        }
        let expected = format!("above 0 and at most the model's width {d}");
        Err(CoreError::bad_value("reduction_factor", factor, &expected))
    }

    pub(crate) fn sits_on(&self, layer: usize, role: Role) -> bool {
        K::ROLES.contains(&role) && !self.leave_out.contains(&layer)
    }

    /// The reduction factor of the invertible adapter, if there is one.
    pub(crate) fn inv_factor(&self) -> Option<f64> {
        let given = self.inv_adapter_reduction_factor;
        self.inv_adapter.map(|_| given.unwrap_or(2.0))
    }

    /// The sublayers that get an adapter.
    pub(crate) fn places<'a>(&self, geometry: &'a Geometry) -> impl Iterator<Item = &'a TapSite> {
        let taps = geometry.taps.iter();
        taps.filter(|tap| self.sits_on(tap.layer, tap.role))
    }
}

impl<K: Kind> MethodConfig for Adapter<K> {
    const INFO: MethodInfo = K::INFO;

    fn examples() -> Vec<Self> {
        let mut examples = vec![
            Self {
                bottleneck: Some(3),
                ..Self::default()
            },
            Self {
                reduction_factor: Some(ReductionFactor::Whole(2)),
                non_linearity: Activation::Relu,
                init: AdapterInit::Mam,
                scaling: Scaling::Fixed(0.5),
                ..Self::default()
            },
            Self {
                reduction_factor: Some(ReductionFactor::Layers(BTreeMap::from([
                    ("1".into(), 4.0),
                    ("default".into(), 2.0),
                ]))),
                scaling: Scaling::learned(),
                leave_out: vec![0],
                ..Self::default()
            },
            Self {
                bottleneck: Some(2),
                skip_scaling: Scaling::learned(),
                stochastic_depth: 0.1,
                ..Self::default()
            },
            Self {
                bottleneck: Some(2),
                gating: true,
                ..Self::default()
            },
        ];
        if matches!(K::INFO.start, Start::Near(_)) {
            // An invertible adapter starts near the identity, not at it.
            examples.push(Self {
                bottleneck: Some(2),
                inv_adapter: Some(InvAdapter::Nice),
                ..Self::default()
            });
        }
        examples
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        hub::read(fields, geometry)
    }
}

impl<K: Kind> Method for Adapter<K> {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::dropout(self.dropout)?;
        if !(0.0..1.0).contains(&self.stochastic_depth) {
            let expected = "at least 0 and below 1";
            let found = self.stochastic_depth;
            return Err(CoreError::bad_value("stochastic_depth", found, expected));
        }
        self.scaling.check("scaling")?;
        self.skip_scaling.check("skip_scaling")?;
        if let Some(factor) = &self.reduction_factor {
            factor.check(geometry.layers)?;
        }
        if let Some(layer) = self.leave_out.iter().find(|l| **l >= geometry.layers) {
            let expected = format!("layers from 0 to below {}", geometry.layers);
            return Err(CoreError::bad_value("leave_out", layer, &expected));
        }
        if self.places(geometry).next().is_none() {
            let expected = "at least one layer with an adapter";
            return Err(CoreError::bad_value("leave_out", "every layer", expected));
        }
        match (self.inv_factor(), self.inv_adapter_reduction_factor) {
            (Some(factor), _) => NiceCoupling::check(geometry.width, factor)?,
            (None, Some(factor)) => {
                let expected = "left out where `inv_adapter` is not given";
                let key = "inv_adapter_reduction_factor";
                return Err(CoreError::bad_value(key, factor, expected));
            }
            (None, None) => {}
        }
        Gate::check(self.gating, self.counts_padding, geometry)?;
        let mut kept = (0..geometry.layers).filter(|layer| !self.leave_out.contains(layer));
        kept.try_for_each(|layer| self.width(layer, geometry.width).map(|_| ()))
    }

    fn tap(&self, layer: usize, role: Role, d: usize, init: &mut Init) -> Option<TapSlot> {
        if !self.sits_on(layer, role) {
            return None;
        }
        let m = self.width(layer, d).ok()?;
        let adapter = Bottleneck::new((d, m), self.non_linearity, self.scaling, self.init, init);
        let adapter = adapter
            .with_dropout(self.dropout)
            .with_stochastic_depth(self.stochastic_depth)
            .with_skip_scaling(self.skip_scaling, d, init)
            .with_gate(
                self.gating
                    .then(|| Gate::new(d, init).counting(self.counts_padding)),
            );
        Some(K::slot(adapter))
    }

    fn needs_own_rows(&self) -> bool {
        // Rows are left out, each by itself, and a gate is a mean over a row.
        self.stochastic_depth > 0.0 || self.gating
    }

    fn ends(&self, width: usize, init: &mut Init) -> Option<EndsSlot> {
        let factor = self.inv_factor()?;
        let coupling = NiceCoupling::new(width, factor, self.non_linearity, init);
        Some(EndsSlot::new(coupling))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let d = geometry.width;
        let each = |tap: &TapSite| {
            let m = self.width(tap.layer, d).unwrap_or(0);
            let gate = if self.gating { Gate::parameters(d) } else { 0 };
            Bottleneck::parameters(d, m, self.scaling) + self.skip_scaling.parameters(d) + gate
        };
        let invertible = self.inv_factor();
        let invertible = invertible.map_or(0, |factor| NiceCoupling::parameters(d, factor));
        self.places(geometry).map(each).sum::<usize>() + invertible
    }

    fn size(&self) -> Option<u64> {
        self.bottleneck.map(|m| m as u64)
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        let inverted = self.inv_adapter.is_some() && hub::is_language_model(geometry);
        let gated = self.gating && !Gate::is_known_to_adapter_hub(geometry);
        // AdapterHub has no factor on the skip path.
        let foreign = !inverted && !gated && is_one(&self.skip_scaling);
        foreign.then(|| hub::write(self, geometry, name))
    }
}

#[cfg(test)]
mod tests;
