//! Configurations of the Llama family.

use std::path::Path;

use peft_core::Activation;
use serde_json::Value;

use crate::error::ModelError;
use crate::fields::Fields;
use crate::rope::{Rope, RopeScaling};

/// Which member of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlamaFamily {
    /// Llama.
    Llama,
    /// Mistral: a sliding window.
    Mistral,
    /// Qwen2: biases on queries, keys and values.
    Qwen2,
    /// Qwen3: normalised queries and keys.
    Qwen3,
}

impl LlamaFamily {
    /// The member a `model_type` names.
    pub fn from_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "llama" => Some(LlamaFamily::Llama),
            "mistral" => Some(LlamaFamily::Mistral),
            "qwen2" => Some(LlamaFamily::Qwen2),
            "qwen3" => Some(LlamaFamily::Qwen3),
            _ => None,
        }
    }
}

/// What decides what a model of the Llama family computes.
#[derive(Clone, Debug)]
pub struct LlamaConfig {
    /// Which member of the family.
    pub family: LlamaFamily,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves a group of query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub inner: usize,
    /// Length of the texts the model is made for.
    pub max_positions: usize,
    /// Rotary positions.
    pub rope: Rope,
    /// Added to mean squares.
    pub eps: f64,
    /// Non-linearity of the gate.
    pub activation: Activation,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward block has biases.
    pub mlp_bias: bool,
    /// Keys that a query sees at most, per layer; none without a limit.
    pub windows: Vec<Option<usize>>,
    /// Whether the head shares the embedding table.
    pub tied: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// Window of the configurations that turn it on without saying how wide it is.
const DEFAULT_WINDOW: usize = 4096;

impl LlamaConfig {
    /// Reads a `config.json`; its `model_type` names the member of the family.
    ///
    /// # Errors
    /// If a key is missing, of the wrong type, or asks for something that is not supported.
    pub fn from_json(json: &Value, file: &Path) -> Result<Self, ModelError> {
        let fields = Fields::new(json, file);
        let model_type = fields.value("model_type").as_str().unwrap_or("");
        let family = LlamaFamily::from_model_type(model_type)
            .ok_or_else(|| fields.error("model_type", "llama, mistral, qwen2 or qwen3"))?;
        fields.known_packing()?;
        let (width, heads) = (
            fields.count("hidden_size")?,
            fields.count("num_attention_heads")?,
        );
        let layers = fields.layers("num_hidden_layers")?;
        let max_positions = fields.count_or("max_position_embeddings", family.positions())?;
        let max_positions = max_positions.unwrap_or(family.positions());
        let attention_bias = match family {
            LlamaFamily::Llama | LlamaFamily::Qwen3 => fields.flag("attention_bias", false)?,
            LlamaFamily::Mistral | LlamaFamily::Qwen2 => false,
        };
        let config = Self {
            family,
            vocab_size: fields.count("vocab_size")?,
            width,
            layers,
            heads,
            kv_heads: family.kv_heads(&fields)?.unwrap_or(heads),
            head_dim: family.head_dim(&fields, width, heads)?,
            inner: fields.count("intermediate_size")?,
            max_positions,
            rope: Rope::read(&fields, max_positions)?,
            eps: fields.eps("rms_norm_eps", 1e-6)?,
            activation: fields.activation("hidden_act", Activation::Swish)?,
            qkv_bias: attention_bias || family == LlamaFamily::Qwen2,
            output_bias: attention_bias,
            mlp_bias: family == LlamaFamily::Llama && fields.flag("mlp_bias", false)?,
            windows: family.windows(&fields, layers)?,
            tied: fields.flag("tie_word_embeddings", false)?,
            initializer_range: fields.above("initializer_range", 0.0)?.unwrap_or(0.02),
        };
        config.check(file)?;
        Ok(config)
    }

    /// Refuses sizes that do not fit together.
    pub(crate) fn check(&self, file: &Path) -> Result<(), ModelError> {
        let error = |key: &str, found: usize, expected: String| ModelError::Config {
            file: file.into(),
            key: key.into(),
            found: found.to_string(),
            expected,
        };
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of `num_attention_heads` ({})", self.heads);
            return Err(error("num_key_value_heads", self.kv_heads, expected));
        }
        // Features turn in pairs; a growing base needs more than one of them.
        let least = match self.rope.scaling {
            RopeScaling::Dynamic { .. } => 4,
            _ => 2,
        };
        if self.head_dim < least || !self.head_dim.is_multiple_of(2) {
            let expected = format!("an even number from {least} up");
            return Err(error("head_dim", self.head_dim, expected));
        }
        if self.windows.len() != self.layers {
            let expected = format!("one of {} layers", self.layers);
            return Err(error("layer_types", self.windows.len(), expected));
        }
        Ok(())
    }

    /// Width of keys and of values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Longest text.
    pub fn max_length(&self) -> usize {
        self.rope.longest(self.max_positions)
    }
}

// What each member's configuration means where it leaves a key out.
impl LlamaFamily {
    fn positions(self) -> usize {
        match self {
            LlamaFamily::Llama => 2048,
            LlamaFamily::Mistral => 4096 * 32,
            LlamaFamily::Qwen2 | LlamaFamily::Qwen3 => 32768,
        }
    }

    fn kv_heads(self, fields: &Fields<'_>) -> Result<Option<usize>, ModelError> {
        let key = "num_key_value_heads";
        match self {
            LlamaFamily::Llama => fields.optional_count(key),
            LlamaFamily::Mistral => fields.count_or(key, 8),
            LlamaFamily::Qwen2 | LlamaFamily::Qwen3 => fields.count_or(key, 32),
        }
    }

    fn head_dim(
        self,
        fields: &Fields<'_>,
        width: usize,
        heads: usize,
    ) -> Result<usize, ModelError> {
        let given = match self {
            LlamaFamily::Qwen3 => fields.count_or("head_dim", 128)?,
            _ => fields.optional_count("head_dim")?,
        };
        match given {
            Some(head_dim) => Ok(head_dim),
            None if width.is_multiple_of(heads) => Ok(width / heads),
            None => {
                let expected = format!("a divisor of `hidden_size` ({width}) without `head_dim`");
                Err(fields.error("num_attention_heads", &expected))
            }
        }
    }

    fn windows(self, fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
        let given = || fields.count_or("sliding_window", DEFAULT_WINDOW);
        let first = fields.value("max_window_layers").as_u64().unwrap_or(28) as usize;
        let (window, first) = match self {
            LlamaFamily::Llama => (None, 0),
            LlamaFamily::Mistral => (given()?, 0),
            _ if fields.flag("use_sliding_window", false)? => (given()?, first),
            _ => (None, 0),
        };
        if !fields.value("max_window_layers").is_null() {
            fields.whole("max_window_layers", 0, crate::fields::MOST)?;
        }
        let by_index = (0..layers).map(|layer| window.filter(|_| layer >= first));
        if fields.value("layer_types").is_null() || self == LlamaFamily::Llama {
            return Ok(by_index.collect());
        }
        let named = by_layer_type(fields, layers, window)?;
        // Mistral has one kind of layer, whatever its file says of single ones.
        if self == LlamaFamily::Mistral && named.iter().any(|named| *named != window) {
            return Err(fields.error("layer_types", "the same kind for every layer"));
        }
        Ok(named)
    }
}

/// The windows that `layer_types` asks for.
fn by_layer_type(
    fields: &Fields<'_>,
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<Option<usize>>, ModelError> {
    let key = "layer_types";
    let expected = format!("{layers} of full_attention or (with a window) sliding_attention");
    let named = fields.value(key).as_array();
    let named = named.filter(|named| named.len() == layers);
    named
        .and_then(|named| {
            let window = |kind: &Value| match kind.as_str()? {
                "full_attention" => Some(None),
                "sliding_attention" => window.map(Some),
                _ => None,
            };
            named.iter().map(window).collect()
        })
        .ok_or_else(|| fields.error(key, &expected))
}
