//! Configurations and tensor names of the BERT family.

use std::path::Path;

use peft_core::Activation;
use serde_json::Value;

use crate::error::ModelError;
use crate::fields::{Fields, MOST};

/// Which member of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// BERT.
    Bert,
    /// RoBERTa.
    Roberta,
    /// DistilBERT.
    Distilbert,
}

impl Family {
    /// The member a `model_type` names.
    pub fn from_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Family::Bert),
            "roberta" => Some(Family::Roberta),
            "distilbert" => Some(Family::Distilbert),
            _ => None,
        }
    }
}

/// What decides what a model of the BERT family computes, whatever its `config.json` calls it.
#[derive(Clone, Debug)]
pub struct BertConfig {
    /// Which member of the family.
    pub family: Family,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward block.
    pub inner: usize,
    /// Rows of the position table.
    pub max_positions: usize,
    /// Rows of the token-type table, 0 where there is none.
    pub type_vocab_size: usize,
    /// Added to variances.
    pub eps: f64,
    /// Non-linearity of the feed-forward block.
    pub activation: Activation,
    /// Id of the padding token.
    pub pad_token_id: usize,
    /// Number of classes.
    pub num_labels: usize,
}

impl BertConfig {
    /// Reads the fields of a `config.json`.
    ///
    /// # Errors
    /// If a field is missing or of the wrong type.
    pub fn from_json(family: Family, json: &Value, file: &Path) -> Result<Self, ModelError> {
        let distil = family == Family::Distilbert;
        let pick = |bert, distilbert| if distil { distilbert } else { bert };
        let fields = Fields::new(json, file);
        let count = |key| fields.count(key);
        fields.only("position_embedding_type", &"absolute".into())?;
        fields.only("is_decoder", &false.into())?;
        fields.known_packing()?;
        let type_vocab_size = match distil {
            true => 0,
            false => fields.whole("type_vocab_size", 0, MOST)?,
        };
        let activation = pick("hidden_act", "activation");
        let default_pad = usize::from(family == Family::Roberta);
        let pad_token_id = match fields.value("pad_token_id") {
            Value::Null => default_pad,
            _ => fields.whole("pad_token_id", 0, MOST)?,
        };
        let config = Self {
            family,
            vocab_size: count("vocab_size")?,
            width: count(pick("hidden_size", "dim"))?,
            layers: fields.layers(pick("num_hidden_layers", "n_layers"))?,
            heads: count(pick("num_attention_heads", "n_heads"))?,
            inner: count(pick("intermediate_size", "hidden_dim"))?,
            max_positions: count("max_position_embeddings")?,
            type_vocab_size,
            eps: fields.eps("layer_norm_eps", 1e-12)?,
            activation: fields.activation(activation, Activation::Gelu)?,
            pad_token_id,
            num_labels: labels(&fields)?,
        };
        config.check(file)?;
        Ok(config)
    }

    pub(crate) fn check(&self, file: &Path) -> Result<(), ModelError> {
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return Err(ModelError::Config {
                file: file.into(),
                key: "num_attention_heads".into(),
                found: self.heads.to_string(),
                expected: format!("a divisor of the width {}", self.width),
            });
        }
        if self.family == Family::Roberta && self.max_positions <= self.pad_token_id + 1 {
            return Err(ModelError::Config {
                file: file.into(),
                key: "max_position_embeddings".into(),
                found: self.max_positions.to_string(),
                expected: format!("more than `pad_token_id` + 1 ({})", self.pad_token_id + 1),
            });
        }
        Ok(())
    }
}

fn labels(fields: &Fields<'_>) -> Result<usize, ModelError> {
    let named = fields
        .value("id2label")
        .as_object()
        .map(|labels| labels.len());
    let given = fields.optional_count("num_labels")?;
    Ok(given.or(named).unwrap_or(2))
}

/// What a member of the family calls its tensors.
pub(crate) struct Names {
    /// Prefix of the body.
    pub(crate) body: &'static str,
    /// Prefix of the layers, before their index.
    pub(crate) layers: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) output: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) mlp_norm: &'static str,
    /// Where AdapterHub hangs adapters on the attention sublayer.
    pub(crate) attention_adapters: &'static str,
    /// Where AdapterHub hangs adapters on the feed-forward sublayer.
    pub(crate) mlp_adapters: &'static str,
    pub(crate) pooler: Option<&'static str>,
    pub(crate) head_dense: Option<&'static str>,
    pub(crate) classifier: &'static str,
}

impl Names {
    /// Whether a checkpoint may hold this tensor without the classifier using it: buffers, and the
    /// heads of the pretraining tasks.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        let pretraining = [
            "cls.",
            "lm_head.",
            "vocab_transform.",
            "vocab_layer_norm.",
            "vocab_projector.",
        ];
        name.ends_with("position_ids")
            || pretraining.iter().any(|prefix| name.starts_with(prefix))
            || (self.pooler.is_none() && name.contains("pooler."))
    }
}

impl Family {
    pub(crate) fn names(self) -> Names {
        let bert = Names {
            body: "bert.",
            layers: "bert.encoder.layer.",
            query: "attention.self.query",
            key: "attention.self.key",
            value: "attention.self.value",
            output: "attention.output.dense",
            attention_norm: "attention.output.LayerNorm",
            up: "intermediate.dense",
            down: "output.dense",
            mlp_norm: "output.LayerNorm",
            attention_adapters: "attention.output",
            mlp_adapters: "output",
            pooler: Some("bert.pooler.dense"),
            head_dense: None,
            classifier: "classifier",
        };
        match self {
            Family::Bert => bert,
            Family::Roberta => Names {
                body: "roberta.",
                layers: "roberta.encoder.layer.",
                pooler: None,
                head_dense: Some("classifier.dense"),
                classifier: "classifier.out_proj",
                ..bert
            },
            Family::Distilbert => Names {
                body: "distilbert.",
                layers: "distilbert.transformer.layer.",
                query: "attention.q_lin",
                key: "attention.k_lin",
                value: "attention.v_lin",
                output: "attention.out_lin",
                attention_norm: "sa_layer_norm",
                up: "ffn.lin1",
                down: "ffn.lin2",
                mlp_norm: "output_layer_norm",
                attention_adapters: "attention_adapters",
                mlp_adapters: "output_adapters",
                pooler: None,
                head_dense: Some("pre_classifier"),
                classifier: "classifier",
            },
        }
    }
}
