//! Where models and tokenizers come from: folders, with shapes for random ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use models::{Gpt2Config, Loaded, Model};
use peft_core::Init;
use tokenizers::Tokenizer;

/// Shapes by name, for counting and timing without a checkpoint.
pub const SHAPES: &[&str] = &[
    "distilgpt2",
    "gpt2",
    "tinyllama",
    "qwen2-0.5b",
    "bert-base",
    "distilbert",
    "minilm",
];

/// A model of random weights of a named shape.
///
/// # Errors
/// If the name is unknown.
pub fn shape(name: &str, init: &mut Init) -> Result<Model> {
    let bert = |family, layers, width, heads, inner| {
        let json = serde_json::json!({
            "vocab_size": 30522, "hidden_size": width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "intermediate_size": inner,
            "max_position_embeddings": 512, "type_vocab_size": 2, "dim": width,
            "n_layers": layers, "n_heads": heads, "hidden_dim": inner
        });
        models::BertConfig::from_json(family, &json, Path::new(name))
    };
    let decoder = |json| models::LlamaConfig::from_json(&json, Path::new(name));
    use models::Family::{Bert, Distilbert};
    Ok(match name {
        "distilgpt2" => Model::random_gpt2(Gpt2Config::distilgpt2(), init)?,
        "gpt2" => Model::random_gpt2(Gpt2Config::gpt2(), init)?,
        "tinyllama" => {
            let config = decoder(serde_json::json!({
                "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
                "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                "num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5
            }))?;
            Model::random_llama(config, init)?
        }
        "qwen2-0.5b" => {
            let config = decoder(serde_json::json!({
                "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896,
                "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                "num_key_value_heads": 2, "max_position_embeddings": 131_072, "rope_theta": 1e6,
                "tie_word_embeddings": true
            }))?;
            Model::random_llama(config, init)?
        }
        "bert-base" => Model::random_bert(bert(Bert, 12, 768, 12, 3072)?, init)?,
        "distilbert" => Model::random_bert(bert(Distilbert, 6, 768, 12, 3072)?, init)?,
        "minilm" => Model::random_bert(bert(Bert, 6, 384, 12, 1536)?, init)?,
        _ => anyhow::bail!(
            "no shape is called `{name}`; there are {}",
            SHAPES.join(", ")
        ),
    })
}

/// Reads a model folder.
///
/// # Errors
/// If it is no Hugging Face model folder, or its tensors do not fit.
pub fn load(folder: &Path, classes: Option<usize>, init: &mut Init) -> Result<Loaded> {
    anyhow::ensure!(
        folder.is_dir(),
        "`{}` is no folder; expected one with config.json, model.safetensors and tokenizer.json",
        folder.display()
    );
    Ok(models::load(folder, classes, init)?)
}

/// Reads a folder's `tokenizer.json`.
///
/// # Errors
/// If it is missing or damaged, or has more tokens than the model.
pub fn tokenizer(folder: &Path, model: &Model) -> Result<Tokenizer> {
    let file = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&file)
        .map_err(|e| anyhow::anyhow!("{e}"))
        .with_context(|| format!("cannot read tokenizer `{}`", file.display()))?;
    let (tokens, rows) = (tokenizer.get_vocab_size(true), model.vocab_size());
    anyhow::ensure!(
        tokens <= rows,
        "`{}` has {tokens} tokens but the model's embedding table only {rows} rows",
        file.display()
    );
    Ok(tokenizer)
}

/// The id of the token that ends a text.
///
/// # Errors
/// If the configuration names none and the tokenizer knows none of the usual ones.
pub fn eos(config: &serde_json::Value, tokenizer: &Tokenizer) -> Result<u32> {
    let named = config["eos_token_id"].as_u64().map(|id| id as u32);
    let usual = ["<|endoftext|>", "</s>", "<|im_end|>"];
    named
        .or_else(|| usual.iter().find_map(|token| tokenizer.token_to_id(token)))
        .context("the model's configuration names no `eos_token_id`")
}

/// SHA-256 of a model folder's configuration and weights, in hex.
///
/// # Errors
/// If a file cannot be read.
pub fn fingerprint(folder: &Path) -> Result<String> {
    use sha2::Digest;
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read `{}`", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_string();
            name.ends_with(".safetensors") || name == "config.json" || name == "tokenizer.json"
        })
        .collect();
    files.sort();
    let mut hasher = sha2::Sha256::new();
    for file in files {
        let bytes =
            std::fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        hasher.update(bytes);
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
