//! Configurations and tensor names of the BERT family.

use std::path::Path;

use peft_core::Activation;
use serde_json::Value;

use crate::error::ModelError;

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
        let fields = Fields { json, file };
        let number = |key| fields.number(key);
        let (eps, max_positions) = (json["layer_norm_eps"].as_f64(), "max_position_embeddings");
        fields.check_positions()?;
        let default_pad = u64::from(family == Family::Roberta);
        Ok(Self {
            family,
            vocab_size: number("vocab_size")?,
            width: number(pick("hidden_size", "dim"))?,
            layers: number(pick("num_hidden_layers", "n_layers"))?,
            heads: number(pick("num_attention_heads", "n_heads"))?,
            inner: number(pick("intermediate_size", "hidden_dim"))?,
            max_positions: number(max_positions)?,
            type_vocab_size: if distil {
                0
            } else {
                number("type_vocab_size")?
            },
            eps: eps.unwrap_or(1e-12),
            activation: fields.activation(pick("hidden_act", "activation"))?,
            pad_token_id: json["pad_token_id"].as_u64().unwrap_or(default_pad) as usize,
            num_labels: labels(json),
        })
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
        Ok(())
    }
}

fn labels(json: &Value) -> usize {
    let named = json["id2label"]
        .as_object()
        .map(|labels| labels.len() as u64);
    json["num_labels"].as_u64().or(named).unwrap_or(2) as usize
}

/// A configuration file being read.
struct Fields<'a> {
    json: &'a Value,
    file: &'a Path,
}

impl Fields<'_> {
    fn error(&self, key: &str, expected: &str) -> ModelError {
        let found = match &self.json[key] {
            Value::Null => "missing".to_string(),
            value => value.to_string(),
        };
        let (file, key) = (self.file.into(), key.into());
        ModelError::Config {
            file,
            key,
            found,
            expected: expected.into(),
        }
    }

    fn number(&self, key: &str) -> Result<usize, ModelError> {
        // The limit only keeps sums of sizes from overflowing; real models are far below it.
        let plausible = |n: &u64| *n < 1 << 32;
        let number = self.json[key].as_u64().filter(plausible);
        number
            .map(|n| n as usize)
            .ok_or_else(|| self.error(key, "a whole number below 2^32"))
    }

    fn activation(&self, key: &str) -> Result<Activation, ModelError> {
        match &self.json[key] {
            Value::Null => Ok(Activation::Gelu),
            value => serde_json::from_value(value.clone())
                .map_err(|_| self.error(key, "relu, gelu, gelu_new, swish or tanh")),
        }
    }

    fn check_positions(&self) -> Result<(), ModelError> {
        let key = "position_embedding_type";
        match self.json[key].as_str() {
            None | Some("absolute") => Ok(()),
            Some(_) => Err(self.error(key, "absolute")),
        }
    }
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
