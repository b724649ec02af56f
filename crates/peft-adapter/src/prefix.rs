//! Prefix tuning: trained keys and values that every query sees, in every layer.
//!
//! Paper: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts", arXiv 2101.00190.
//! Seam: attention core. The prefix goes before the keys and values of the text; no reparametrising
//! network (the paper's is dropped after training anyway).

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Attend, AttendSlot, CoreError, Fields, Foreign, Form, Geometry, Heads, Init, Method,
    MethodConfig, MethodInfo, Pass, Rule, Start, check,
};
use serde::{Deserialize, Serialize};

/// Configuration of prefix tuning, `kind = "prefix"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefix {
    /// Number of virtual tokens in front of each layer's keys.
    pub num_virtual_tokens: usize,
    /// Standard deviation of the starting values.
    pub init_std: f64,
    /// Whether the prefix takes positions, so that the text starts behind it: so in HF PEFT, not in
    /// AdapterHub nor in the paper.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takes_positions: bool,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 16,
            init_std: 0.02,
            takes_positions: false,
        }
    }
}

impl MethodConfig for Prefix {
    const INFO: MethodInfo = MethodInfo {
        kind: "prefix",
        name: "Prefix",
        paper: "Li and Liang 2021, arXiv 2101.00190",
        seam: "attention core",
        formula: "2 n d_kv per layer",
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
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "PREFIX_TUNING" {
            return Ok(None);
        }
        // What the file holds is the prefix itself, also where a network made it while training.
        fields.ignore(&["prefix_projection", "encoder_hidden_size", "init_weights"]);
        fields.allow("num_transformer_submodules", &[1.into()])?;
        fields.allow("num_layers", &[geometry.layers.into()])?;
        fields.ignore(&["num_attention_heads", "token_dim", "num_frozen_tokens"]);
        fields.modules_to_save(geometry)?;
        Ok(Some(Prefix {
            num_virtual_tokens: fields.require("num_virtual_tokens")?,
            takes_positions: true,
            ..Self::default()
        }))
    }
}

impl Method for Prefix {
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        check::size("num_virtual_tokens", self.num_virtual_tokens)?;
        if !(self.init_std >= 0.0 && self.init_std.is_finite()) {
            return Err(CoreError::bad_value(
                "init_std",
                self.init_std,
                "a number from 0 up",
            ));
        }
        Ok(())
    }

    fn attend(&self, _layer: usize, kv_width: usize, init: &mut Init) -> Option<AttendSlot> {
        let shape = [self.num_virtual_tokens, kv_width];
        Some(AttendSlot::new(PrefixAttention {
            keys: Param::from_tensor(init.normal(shape, self.init_std)),
            values: Param::from_tensor(init.normal(shape, self.init_std)),
        }))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.layers * 2 * self.num_virtual_tokens * geometry.kv_width
    }

    fn position_offset(&self) -> usize {
        match self.takes_positions {
            true => self.num_virtual_tokens,
            false => 0,
        }
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT has no field for it: what it loads always takes positions.
        if !self.takes_positions {
            return None;
        }
        let (layers, count) = (geometry.layers, geometry.kv_width);
        let width = layers * 2 * count;
        let rule = |layer: usize, half: usize, name: &str| {
            let start = (2 * layer + half) * count;
            let form = Form::Columns {
                start,
                count,
                width,
            };
            Rule::new(
                format!("layer.{layer}.attention/{name}"),
                "prompt_embeddings",
                form,
            )
        };
        let rules = (0..layers).flat_map(|i| [rule(i, 0, "keys"), rule(i, 1, "values")]);
        let fields = serde_json::json!({
            "peft_type": "PREFIX_TUNING", "num_virtual_tokens": self.num_virtual_tokens,
            "num_layers": layers, "num_attention_heads": geometry.kv_heads,
            "token_dim": count, "num_transformer_submodules": 1,
            "prefix_projection": false, "encoder_hidden_size": count,
        });
        Some(Foreign::new(fields, rules.collect()))
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
}

impl Attend for PrefixAttention {
    fn forward(&self, heads: Heads, _pass: &Pass<'_>) -> Tensor<3> {
        heads
            .with_prefix(self.keys.val(), self.values.val())
            .attend()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Prefix);
}
