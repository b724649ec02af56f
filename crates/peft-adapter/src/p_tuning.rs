//! P-tuning: virtual tokens in front of the embedded text that a small network makes while training.
//!
//! Paper: Liu et al. 2021, "GPT Understands, Too", arXiv 2103.10385.
//! Seam: token embedding. The network is HF PEFT's perceptron (its default, instead of the paper's
//! LSTM); what is kept in the end are the tokens it makes.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, activation::relu};
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Lookup, LookupSlot, Method, MethodConfig,
    MethodInfo, Pass, Start, Table, check, kernels,
};
use serde::{Deserialize, Serialize};

use crate::peft;
use crate::prompt_tuning::Prompt;

/// Configuration of P-tuning, `kind = "p_tuning"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PTuning {
    /// Number of virtual tokens in front of the text.
    pub num_virtual_tokens: usize,
    /// The network that makes them.
    pub encoder_reparameterization_type: Encoder,
    /// Width of the network's hidden layers; the model's where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_hidden_size: Option<usize>,
}

/// What makes the virtual tokens while training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoder {
    /// Three linear layers with ReLU between them.
    #[default]
    Mlp,
    /// None: the tokens themselves are trained. So is what was read from HF PEFT, whose files hold
    /// no network.
    None,
}

impl Default for PTuning {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            encoder_reparameterization_type: Encoder::Mlp,
            encoder_hidden_size: None,
        }
    }
}

impl PTuning {
    fn hidden(&self, d: usize) -> usize {
        self.encoder_hidden_size.unwrap_or(d)
    }
}

impl MethodConfig for PTuning {
    const INFO: MethodInfo = MethodInfo {
        kind: "p_tuning",
        name: "P-tuning",
        paper: "Liu et al. 2021, arXiv 2103.10385",
        seam: "token embedding",
        formula: "n d + h^2 + 2 h d + 2 h + d",
        start: Start::Elsewhere("the virtual tokens take part of the attention from the start"),
        mergeable: false,
        size_key: Some("num_virtual_tokens"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Self {
                num_virtual_tokens: 3,
                encoder_hidden_size: Some(5),
                ..Self::default()
            },
            Self {
                num_virtual_tokens: 2,
                encoder_reparameterization_type: Encoder::None,
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "P_TUNING" {
            return Ok(None);
        }
        // The network that made what the file holds.
        fields.ignore(&[
            "encoder_reparameterization_type",
            "encoder_hidden_size",
            "encoder_num_layers",
            "encoder_dropout",
        ]);
        Ok(Some(Self {
            num_virtual_tokens: peft::virtual_tokens(fields, geometry)?,
            encoder_reparameterization_type: Encoder::None,
            encoder_hidden_size: None,
        }))
    }
}

impl Method for PTuning {
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        check::size("num_virtual_tokens", self.num_virtual_tokens)?;
        let Some(hidden) = self.encoder_hidden_size else {
            return Ok(());
        };
        match self.encoder_reparameterization_type {
            Encoder::Mlp => check::size("encoder_hidden_size", hidden),
            Encoder::None => {
                let expected = "left out where there is no encoder";
                Err(CoreError::bad_value(
                    "encoder_hidden_size",
                    hidden,
                    expected,
                ))
            }
        }
    }

    fn lookup(&self, table: &Table, init: &mut Init) -> Option<LookupSlot> {
        let (n, d) = (self.num_virtual_tokens, table.width);
        Some(match self.encoder_reparameterization_type {
            Encoder::Mlp => {
                let tokens = init.normal([n, d], 1.0);
                LookupSlot::new(PromptEncoder::new(tokens, self.hidden(d), init))
            }
            Encoder::None => LookupSlot::new(Prompt::new(init.uniform([n, d], 0.5))),
        })
    }

    fn position_offset(&self) -> usize {
        self.num_virtual_tokens
    }

    fn needs_own_rows(&self) -> bool {
        true
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let d = geometry.table.width;
        let h = self.hidden(d);
        let network = match self.encoder_reparameterization_type {
            Encoder::Mlp => h * h + 2 * h * d + 2 * h + d,
            Encoder::None => 0,
        };
        self.num_virtual_tokens * d + network
    }

    fn size(&self) -> Option<u64> {
        Some(self.num_virtual_tokens as u64)
    }

    /// The rules are those of the settled model: the tokens, without the network.
    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let mut fields = peft::prompt_fields("P_TUNING", self.num_virtual_tokens, geometry);
        let hidden = self.hidden(geometry.width);
        fields.insert("encoder_reparameterization_type".into(), "MLP".into());
        fields.insert("encoder_hidden_size".into(), hidden.into());
        fields.insert("encoder_num_layers".into(), 2.into());
        fields.insert("encoder_dropout".into(), 0.0.into());
        let rules = vec![Prompt::rule(geometry)];
        Some(Foreign { fields, rules })
    }
}

/// Trained tokens and the network that makes virtual tokens of them.
#[derive(Module, Debug)]
pub struct PromptEncoder {
    /// `[n, d]`
    tokens: Param<Tensor<2>>,
    layers: Vec<EncoderLayer>,
}

/// A linear layer that starts as PyTorch's do.
#[derive(Module, Debug)]
struct EncoderLayer {
    /// `[in, out]`
    weight: Param<Tensor<2>>,
    /// `[out]`
    bias: Param<Tensor<1>>,
}

impl PromptEncoder {
    /// A network with hidden layers of this width.
    pub fn new(tokens: Tensor<2>, hidden: usize, init: &mut Init) -> Self {
        let [_, d] = tokens.dims();
        let widths = [(d, hidden), (hidden, hidden), (hidden, d)];
        let mut layer = |(from, to)| EncoderLayer {
            weight: Param::from_tensor(init.kaiming_uniform([from, to], from)),
            bias: Param::from_tensor(init.kaiming_uniform([to], from)),
        };
        Self {
            tokens: Param::from_tensor(tokens),
            layers: widths.map(&mut layer).into(),
        }
    }

    /// The virtual tokens, `[n, d]`.
    fn rows(&self) -> Tensor<2> {
        let mut x = self.tokens.val();
        for (index, layer) in self.layers.iter().enumerate() {
            let input = if index == 0 { x } else { relu(x) };
            x = kernels::linear(input, layer.weight.val(), Some(layer.bias.val()));
        }
        x
    }
}

impl Lookup for PromptEncoder {
    fn forward(&self, _ids: Tensor<2, Int>, rows: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        rows
    }

    fn prompt(&self, _pass: &Pass<'_>) -> Option<Tensor<2>> {
        Some(self.rows())
    }

    fn settled(&self, _pass: &Pass<'_>) -> Option<LookupSlot> {
        Some(LookupSlot::new(Prompt::new(self.rows().detach())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use peft_core::contract::{ContractHost, perturbed};
    use peft_core::exchange::collect;
    use peft_core::{adapt, toy::Toy};

    peft_core::contract_tests!(PTuning);

    #[test]
    fn the_settled_model_computes_the_same_and_has_the_tensors_of_peft() {
        let mut init = Init::new(1, &Device::flex().autodiff());
        let method = &PTuning::examples()[0];
        let toy = Toy::build(&mut init);
        let model = perturbed(adapt(toy, method, None, &mut init).unwrap(), 0.1);
        let geometry = peft_core::Host::geometry(&model.host);
        let rules = method.peft(&geometry).unwrap().rules;
        assert!(
            collect(&model, &rules).is_err(),
            "the network would be lost"
        );
        let settled = model.clone().settled();
        let tensors = collect(&settled, &rules).unwrap();
        assert_eq!(tensors["embedding/prompt"].shape().to_vec(), [3, 8]);
        let ids = TensorData::new(vec![1i32, 5, 2], [1, 3]);
        let logits = |model| {
            let ids = Tensor::<2, Int>::from_data(ids.clone(), init.device());
            Toy::logits(model, ids).into_data()
        };
        assert_eq!(logits(&settled), logits(&model));
    }
}
