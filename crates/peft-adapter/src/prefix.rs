//! Prefix tuning: trained keys and values that every query sees, in every layer.
//!
//! Paper: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts", arXiv 2101.00190.
//! Seam: attention core. The prefix goes before the keys and values of the text. With
//! `prefix_projection` a network that the layers share makes it while training, as in the paper.

mod hub;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Attend, AttendSlot, CoreError, Fields, Foreign, Form, Geometry, Heads, Init, Method,
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
    /// Standard deviation of the starting values.
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
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 16,
            init_std: 0.02,
            takes_positions: false,
            prefix_projection: false,
            encoder_hidden_size: None,
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
        _geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        hub::read(fields)
    }
}

impl Method for Prefix {
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
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
        Ok(())
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let encoder = || PrefixEncoder::new(self.encoder(geometry), init);
        self.prefix_projection.then(encoder).map(SharedSlot::new)
    }

    fn attend(&self, layer: usize, kv_width: usize, init: &mut Init) -> Option<AttendSlot> {
        if self.prefix_projection {
            return Some(AttendSlot::new(ProjectedPrefix::new(layer, kv_width)));
        }
        let shape = [self.num_virtual_tokens, kv_width];
        let keys = init.normal(shape, self.init_std);
        let values = init.normal(shape, self.init_std);
        Some(AttendSlot::new(PrefixAttention::new(keys, values)))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        match self.prefix_projection {
            true => PrefixEncoder::parameters(self.encoder(geometry)),
            false => geometry.layers * 2 * self.num_virtual_tokens * geometry.kv_width,
        }
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
        // PEFT has no field for it: what it loads always takes positions.
        if !self.takes_positions {
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
}

impl PrefixAttention {
    /// A prefix that starts from these keys and values.
    pub fn new(keys: Tensor<2>, values: Tensor<2>) -> Self {
        Self {
            keys: Param::from_tensor(keys),
            values: Param::from_tensor(values),
        }
    }
}

impl Attend for PrefixAttention {
    fn forward(&self, heads: Heads<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        heads
            .with_prefix(self.keys.val(), self.values.val())
            .attend()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int, TensorData, Tolerance};
    use peft_core::contract::{ContractHost, perturbed};
    use peft_core::exchange::{collect, export, import};
    use peft_core::{Host, adapt, toy::Toy};

    peft_core::contract_tests!(Prefix);

    #[test]
    fn a_settled_prefix_computes_what_the_network_did_and_has_the_tensors_of_peft() {
        let mut init = Init::new(1, &Device::flex().autodiff());
        let method = Prefix {
            takes_positions: true,
            ..Prefix::examples().swap_remove(2)
        };
        let toy = Toy::build(&mut init);
        let model = perturbed(adapt(toy, &method, None, &mut init).unwrap(), 0.1);
        let rules = method.peft(&model.host.geometry()).unwrap().rules;
        assert!(
            collect(&model, &rules).is_err(),
            "the network would be lost"
        );
        let settled = model.clone().settled();
        assert!(settled.shared.is_none());
        let theirs = export(&collect(&settled, &rules).unwrap(), &rules).unwrap();
        assert_eq!(theirs["prompt_embeddings"].shape().to_vec(), [2, 2 * 2 * 8]);
        let logits = |model| {
            let ids = Tensor::<2, Int>::from_data([[1, 5, 2]], init.device());
            Toy::logits(model, ids).into_data()
        };
        logits(&settled).assert_approx_eq::<f32>(&logits(&model), Tolerance::absolute(1e-6));
    }

    #[test]
    fn flat_prefixes_of_adapterhub_are_one_vector() {
        let toy = Toy::build(&mut Init::new(0, &Device::flex())).geometry();
        let flat = Prefix::examples().swap_remove(0);
        let form = flat.adapter_hub(&toy, "x").unwrap();
        let ours = |rule: &peft_core::Rule| {
            let values = (0..3 * 8).map(|i| i as f32 + rule.place.len() as f32);
            let data = TensorData::new(values.collect(), [3, 8]);
            (rule.place.clone(), data)
        };
        let ours = form.rules.iter().map(ours).collect();
        let theirs = export(&ours, &form.rules).unwrap();
        let (key, whole) = theirs.first_key_value().unwrap();
        assert!(
            key.ends_with("prefix_tuning.prefix_tunings.x.self_prefix.control_trans"),
            "{key}"
        );
        assert_eq!(whole.shape().to_vec(), [3 * 2 * 2 * 8]);
        assert_eq!(import(theirs, &form.rules, "x").unwrap(), ours);
    }
}
