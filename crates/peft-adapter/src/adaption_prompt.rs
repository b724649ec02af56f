//! LLaMA-Adapter: trained prompts in the upper layers, attended to through a gate that starts at 0.
//!
//! Paper: Zhang et al. 2023, "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init
//! Attention", arXiv 2303.16199.
//! Seam: attention core. The layer's own projections make keys and values of the prompt, without
//! positions. Every query attends to them apart from the text, and the result times the gate is added
//! to what it found there. As in HF PEFT a layer has one gate, which is the factor itself; the paper's
//! code has one for every head, and its `tanh` for the factor.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Attend, AttendSlot, CoreError, Fields, Foreign, Form, Geometry, Heads, Init, Method,
    MethodConfig, MethodInfo, Pass, Role, Rule, Start, attend::AttentionSpec, check, kernels,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::peft;

/// Configuration of LLaMA-Adapter, `kind = "adaption_prompt"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptionPrompt {
    /// Number of prompt vectors a layer has.
    pub adapter_len: usize,
    /// Number of layers that have them, from the top; all where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_layers: Option<usize>,
}

impl Default for AdaptionPrompt {
    fn default() -> Self {
        Self {
            adapter_len: 10,
            adapter_layers: None,
        }
    }
}

impl AdaptionPrompt {
    fn layers(&self, geometry: &Geometry) -> usize {
        self.adapter_layers.unwrap_or(geometry.layers)
    }

    /// The layers that have a prompt.
    fn upper(&self, geometry: &Geometry) -> std::ops::Range<usize> {
        geometry.layers.saturating_sub(self.layers(geometry))..geometry.layers
    }
}

/// The name of a layer's attention module as HF PEFT wraps it, in the models whose gated attention it
/// computes as here: those of Llama's form. In GPT-2 it leaves the output projection out, and with a
/// bias in that it would add it twice.
fn attention_module(geometry: &Geometry, layer: usize) -> Option<String> {
    let mut sites = geometry.sites.iter();
    let output = sites.find(|site| site.layer == layer && site.role == Role::Output)?;
    let module = output.path.strip_suffix(".self_attn.o_proj")?;
    let module = format!("{module}.self_attn");
    let plain = ["o_proj.bias", "k_norm.weight"];
    let differs = |part: &&str| {
        let name = format!("{module}.{part}");
        geometry.params.iter().any(|param| param.name == name)
    };
    (!plain.iter().any(differs)).then_some(module)
}

impl MethodConfig for AdaptionPrompt {
    const INFO: MethodInfo = MethodInfo {
        kind: "adaption_prompt",
        name: "LLaMA-Adapter",
        paper: "Zhang et al. 2023, arXiv 2303.16199",
        seam: "attention core",
        formula: "n d + 1 per layer",
        start: Start::Identity,
        mergeable: false,
        size_key: Some("adapter_len"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Self {
                adapter_len: 3,
                adapter_layers: None,
            },
            Self {
                adapter_len: 2,
                adapter_layers: Some(1),
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "ADAPTION_PROMPT" {
            return Ok(None);
        }
        if attention_module(geometry, 0).is_none() {
            let expected = "on a model of Llama's form without a bias on its output projection: on \
                            others PEFT computes it differently";
            return Err(fields.unsupported("peft_type", &json!("ADAPTION_PROMPT"), expected));
        }
        fields.allow("target_modules", &[Value::Null, "self_attn".into()])?;
        peft::only_the_head_is_saved(fields, geometry)?;
        Ok(Some(Self {
            adapter_len: fields.require("adapter_len")?,
            adapter_layers: Some(fields.require("adapter_layers")?),
        }))
    }
}

impl Method for AdaptionPrompt {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::size("adapter_len", self.adapter_len)?;
        match self.adapter_layers {
            Some(layers) if !(1..=geometry.layers).contains(&layers) => {
                let expected = format!("from 1 to the {} layers there are", geometry.layers);
                Err(CoreError::bad_value("adapter_layers", layers, &expected))
            }
            _ => Ok(()),
        }
    }

    fn attend_in(&self, layer: usize, geometry: &Geometry, init: &mut Init) -> Option<AttendSlot> {
        let prompt = |init: &mut Init| GatedPrompt {
            prompt: Param::from_tensor(init.normal([self.adapter_len, geometry.width], 1.0)),
            gate: Param::from_tensor(init.zeros([1])),
        };
        let has_one = self.upper(geometry).contains(&layer);
        has_one.then(|| AttendSlot::new(prompt(init)))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.layers(geometry) * (self.adapter_len * geometry.width + 1)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let mut rules = Vec::new();
        for layer in self.upper(geometry) {
            let module = attention_module(geometry, layer)?;
            let (ours, theirs) = (
                format!("layer.{layer}.attention"),
                format!("base_model.model.{module}"),
            );
            let shapes = Form::Shaped {
                ours: vec![self.adapter_len, geometry.width],
                theirs: vec![1, self.adapter_len, geometry.width],
            };
            rules.push(Rule::new(
                format!("{ours}/prompt"),
                format!("{theirs}.adaption_prompt"),
                shapes,
            ));
            rules.push(Rule::as_is(
                format!("{ours}/gate"),
                format!("{theirs}.adaption_gate"),
            ));
        }
        let fields = json!({
            "peft_type": "ADAPTION_PROMPT", "target_modules": "self_attn",
            "adapter_len": self.adapter_len, "adapter_layers": self.layers(geometry),
        });
        Some(Foreign::new(fields, rules))
    }

    fn size(&self) -> Option<u64> {
        Some(self.adapter_len as u64)
    }
}

/// Attention with a gated prompt.
#[derive(Module, Debug)]
pub struct GatedPrompt {
    /// `[n, d]`
    prompt: Param<Tensor<2>>,
    /// `[1]`
    gate: Param<Tensor<1>>,
}

impl Attend for GatedPrompt {
    fn forward(&self, heads: Heads<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        let (keys, values) = (heads.keys_and_values)(self.prompt.val().unsqueeze());
        let [batch, _, _] = heads.q.dims();
        let [_, n, width] = keys.dims();
        let expand = |t: Tensor<3>| t.expand([batch, n, width]);
        let spec = AttentionSpec {
            causal: false,
            window: None,
            ..heads.spec
        };
        let (keys, values) = (expand(keys), expand(values));
        let prompted = kernels::attention(heads.q.clone(), keys, values, &spec, None);
        heads.attend() + prompted * self.gate.val().unsqueeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance, activation::softmax};
    use peft_core::{Host, contract::ContractHost, toy::Toy};

    peft_core::contract_tests!(AdaptionPrompt);

    #[test]
    fn the_prompt_has_a_softmax_of_its_own_and_the_gate_scales_it() {
        let device = Device::flex();
        let mut init = Init::new(2, &device);
        let layer = GatedPrompt {
            prompt: Param::from_tensor(init.normal([3, 4], 1.0)),
            gate: Param::from_tensor(Tensor::from_floats([0.7], &device)),
        };
        let [q, k, v] = [(); 3].map(|()| init.normal([2, 5, 4], 1.0));
        // One head; the layer doubles states to make keys of them and negates them for values.
        let spec = AttentionSpec {
            heads: 1,
            kv_heads: 1,
            scale: 0.5,
            causal: true,
            window: Some(2),
        };
        let heads = Heads {
            input: q.clone(),
            q: q.clone(),
            k,
            v,
            key_mask: None,
            spec,
            keys_and_values: &|x| (x.clone().mul_scalar(2.0), x.neg()),
            texts: None,
        };
        let text = heads.clone().attend();
        let prompt = layer.prompt.val().unsqueeze::<3>();
        let scores = q.matmul(prompt.clone().transpose()).mul_scalar(2.0 * 0.5);
        let found = softmax(scores, 2).matmul(prompt.neg());
        let expected = (text + found.mul_scalar(0.7)).into_data();
        let ours = layer.forward(heads, &Pass::new()).into_data();
        ours.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
    }

    #[test]
    fn more_layers_than_there_are_and_models_peft_treats_differently_are_refused() {
        let toy = Toy::build(&mut Init::new(0, &Device::flex())).geometry();
        for layers in [0, 3] {
            let method = AdaptionPrompt {
                adapter_layers: Some(layers),
                ..AdaptionPrompt::default()
            };
            let error = method.check(&toy).unwrap_err().to_string();
            assert!(error.contains("`adapter_layers` is"), "{error}");
        }
        assert!(AdaptionPrompt::default().peft(&toy).is_none());
        let values = json!({"peft_type": "ADAPTION_PROMPT", "adapter_len": 2, "adapter_layers": 1});
        let values = values.as_object().unwrap().clone();
        let mut fields = Fields::new("adapter_config.json", values);
        let error = AdaptionPrompt::from_peft(&mut fields, &toy).unwrap_err();
        assert!(error.to_string().contains("Llama's form"), "{error}");
    }
}
