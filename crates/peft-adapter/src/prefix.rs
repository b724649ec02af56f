//! Prefix tuning: trained keys and values that every query sees, in every layer.
//!
//! Paper: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts", arXiv 2101.00190.
//! Seam: attention core. The prefix goes before the keys and values of the text. With
//! `prefix_projection` a network that the layers share makes it while training, as in the paper.

mod hub;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Attend, AttendSlot, CoreError, Fields, Foreign, Form, Gate, Geometry, Heads, Init, Method,
    MethodConfig, MethodInfo, Pass, Rule, SharedSlot, Start, VirtualTokens, check,
    exchange::Columns,
};
use serde::{Deserialize, Serialize};

use crate::peft;
use crate::prefix_encoder::{EncoderShape, PrefixEncoder, ProjectedPrefix};

/// Configuration of prefix tuning, `kind = "prefix"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefix {
    /// Number of virtual tokens in front of each layer's keys.
    pub num_virtual_tokens: usize,
    /// Standard deviation of the starting values, 1 as in HF PEFT and AdapterHub.
    pub init_std: f64,
    /// Whether the prefix takes positions, so that the text starts behind it: so in HF PEFT, not in
    /// AdapterHub nor in the paper.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takes_positions: bool,
    /// Whether a network makes the prefixes of all layers while training. What is read from HF
    /// PEFT has none: its files hold what the network made.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub prefix_projection: bool,
    /// Width of that network's hidden layer; the model's where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_hidden_size: Option<usize>,
    /// A trained gate on every layer's prefix, one number for every text (see [`Gate`]).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gating: bool,
    /// Whether its mean is over padding too, as in AdapterHub; what is read from there says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub counts_padding: bool,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 16,
            init_std: 1.0,
            takes_positions: false,
            prefix_projection: false,
            encoder_hidden_size: None,
            gating: false,
            counts_padding: false,
        }
    }
}

impl Prefix {
    fn hidden(&self, geometry: &Geometry) -> usize {
        self.encoder_hidden_size.unwrap_or(geometry.width)
    }

    fn encoder(&self, geometry: &Geometry) -> EncoderShape {
        EncoderShape {
            tokens: self.num_virtual_tokens,
            d: geometry.width,
            hidden: self.hidden(geometry),
            out: geometry.layers * 2 * geometry.kv_width,
        }
    }

    /// Every layer's keys and values as columns of the one tensor of this key.
    fn column_rules(&self, geometry: &Geometry, key: &str, form: fn(Columns) -> Form) -> Vec<Rule> {
        let (layers, count) = (geometry.layers, geometry.kv_width);
        let rule = |layer: usize, half: usize, name: &str| {
            let columns = Columns {
                start: (2 * layer + half) * count,
                count,
                width: layers * 2 * count,
            };
            Rule::new(
                format!("layer.{layer}.attention/{name}"),
                key,
                form(columns),
            )
        };
        let layer = |i| [rule(i, 0, "keys"), rule(i, 1, "values")];
        (0..layers).flat_map(layer).collect()
    }
}

impl MethodConfig for Prefix {
    const INFO: MethodInfo = MethodInfo {
        kind: "prefix",
        name: "Prefix",
        paper: "Li and Liang 2021, arXiv 2101.00190",
        seam: "attention core",
        formula: "2 n d_kv per layer; with projection n d + d h + h + 2 L d_kv (h + 1)",
        start: Start::Elsewhere("the prefix takes part of the attention from the first step on"),
        mergeable: false,
        size_key: Some("num_virtual_tokens"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Prefix {
                num_virtual_tokens: 3,
                ..Self::default()
            },
            Prefix {
                num_virtual_tokens: 1,
                init_std: 0.5,
                takes_positions: true,
                ..Self::default()
            },
            Prefix {
                num_virtual_tokens: 2,
                prefix_projection: true,
                encoder_hidden_size: Some(5),
                ..Self::default()
            },
            Prefix {
                num_virtual_tokens: 2,
                gating: true,
                ..Self::default()
            },
            Prefix {
                num_virtual_tokens: 2,
                prefix_projection: true,
                encoder_hidden_size: Some(3),
                gating: true,
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "PREFIX_TUNING" {
            return Ok(None);
        }
        // What the file holds is the prefix itself, also where a network made it while training.
        fields.ignore(&["prefix_projection", "encoder_hidden_size", "init_weights"]);
        fields.ignore(&["num_frozen_tokens"]);
        Ok(Some(Prefix {
            num_virtual_tokens: peft::virtual_tokens(fields, geometry)?,
            takes_positions: true,
            ..Self::default()
        }))
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        hub::read(fields, geometry)
    }
}

impl Method for Prefix {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::size("num_virtual_tokens", self.num_virtual_tokens)?;
        if let Some(hidden) = self.encoder_hidden_size {
            check::size("encoder_hidden_size", hidden)?;
            if !self.prefix_projection {
                let expected = "left out where `prefix_projection` is off";
                return Err(CoreError::bad_value(
                    "encoder_hidden_size",
                    hidden,
                    expected,
                ));
            }
        }
        if !(self.init_std >= 0.0 && self.init_std.is_finite()) {
            return Err(CoreError::bad_value(
                "init_std",
                self.init_std,
                "a number from 0 up",
            ));
        }
        Gate::check(self.gating, self.counts_padding, geometry)
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let encoder = || PrefixEncoder::new(self.encoder(geometry), init);
        self.prefix_projection.then(encoder).map(SharedSlot::new)
    }

    fn attend_in(&self, layer: usize, geometry: &Geometry, init: &mut Init) -> Option<AttendSlot> {
        let new = |init: &mut Init| Gate::new(geometry.width, init).counting(self.counts_padding);
        let gate = |init: &mut Init| self.gating.then(|| new(init));
        if self.prefix_projection {
            let projected = ProjectedPrefix::new(layer, geometry.kv_width, gate(init));
            return Some(AttendSlot::new(projected));
        }
        let shape = [self.num_virtual_tokens, geometry.kv_width];
        let keys = init.normal(shape, self.init_std);
        let values = init.normal(shape, self.init_std);
        let prefix = PrefixAttention::new(keys, values, gate(init));
        Some(AttendSlot::new(prefix))
    }

    /// A gate is a mean over a row.
    fn needs_own_rows(&self) -> bool {
        self.gating
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let prefixes = match self.prefix_projection {
            true => PrefixEncoder::parameters(self.encoder(geometry)),
            false => geometry.layers * 2 * self.num_virtual_tokens * geometry.kv_width,
        };
        let gate = if self.gating {
            Gate::parameters(geometry.width)
        } else {
            0
        };
        prefixes + geometry.layers * gate
    }

    fn position_offset(&self) -> usize {
        match self.takes_positions {
            true => self.num_virtual_tokens,
            false => 0,
        }
    }

    fn virtual_tokens(&self) -> VirtualTokens {
        VirtualTokens {
            body: 0,
            keys: self.num_virtual_tokens,
        }
    }

    /// The rules are those of the settled model: the prefixes, without the network.
    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT has no fields for it: what it loads always takes positions and has no gates.
        if !self.takes_positions || self.gating {
            return None;
        }
        let fields = serde_json::json!({
            "peft_type": "PREFIX_TUNING", "num_virtual_tokens": self.num_virtual_tokens,
            "num_layers": geometry.layers, "num_attention_heads": geometry.kv_heads,
            "token_dim": geometry.kv_width, "num_transformer_submodules": 1,
            "prefix_projection": self.prefix_projection,
            "encoder_hidden_size": self.hidden(geometry),
        });
        let rules = self.column_rules(geometry, "prompt_embeddings", Form::Columns);
        Some(Foreign::new(fields, rules))
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        hub::write(self, geometry, name)
    }

    fn size(&self) -> Option<u64> {
        Some(self.num_virtual_tokens as u64)
    }
}

/// Attention with a trained prefix.
#[derive(Module, Debug)]
pub struct PrefixAttention {
    /// `[n, kv_width]`
    keys: Param<Tensor<2>>,
    /// `[n, kv_width]`
    values: Param<Tensor<2>>,
    gate: Option<Gate>,
}

impl PrefixAttention {
    /// A prefix that starts from these keys and values.
    pub fn new(keys: Tensor<2>, values: Tensor<2>, gate: Option<Gate>) -> Self {
        Self {
            keys: Param::from_tensor(keys),
            values: Param::from_tensor(values),
            gate,
        }
    }
}

impl Attend for PrefixAttention {
    fn forward(&self, heads: Heads<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let prefix = (self.keys.val(), self.values.val());
        attend(heads, prefix, self.gate.as_ref(), pass)
    }
}

/// Attention with these keys and values before the others, gated where there is a gate.
pub(crate) fn attend(
    heads: Heads<'_>,
    (keys, values): (Tensor<2>, Tensor<2>),
    gate: Option<&Gate>,
    pass: &Pass<'_>,
) -> Tensor<3> {
    match gate {
        Some(gate) => {
            let gate = gate.forward(heads.input.clone(), pass);
            heads.attend_gated_prefix((keys, values), gate)
        }
        None => heads.with_prefix(keys, values).attend(),
    }
}

#[cfg(test)]
mod tests;
