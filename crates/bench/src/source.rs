//! Where models and tokenizers come from: folders and the hub, with shapes for random ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use models::{Gpt2Config, Loaded, Model};
use peft_core::{Host, Init, Proj, Site, Surgeon};
use peft_qlora::BitsAndBytes;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::hub::{Hub, Kind, RepoId, Snapshot};

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

/// The files of a model folder that belong to its tokenizer and to generation.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Copies what belongs to a model's tokenizer from one folder to another.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        let source = from.join(name);
        if source.exists() {
            let copied = std::fs::copy(&source, to.join(name));
            copied.with_context(|| format!("cannot copy `{}`", source.display()))?;
        }
    }
    Ok(())
}

/// A folder, or the one in the cache where the path is a name of the hub.
///
/// # Errors
/// As [`Hub::fetch`].
pub fn folder(path: &Path, kind: Kind) -> Result<PathBuf> {
    match RepoId::of(path)? {
        Some(id) => Ok(Hub::from_env()?.fetch(&id, kind)?.folder),
        None => Ok(path.into()),
    }
}

/// The model by a name that keeps its meaning: one of the hub is downloaded and gets its commit,
/// so that it needs no network from then on. `quiet` downloads show no bars.
///
/// # Errors
/// As [`Hub::fetch`].
pub fn pinned(model: &Path, quiet: bool) -> Result<PathBuf> {
    let Some(id) = RepoId::of(model)? else {
        return Ok(model.into());
    };
    let hub = Hub {
        progress: !quiet,
        ..Hub::from_env()?
    };
    let Snapshot { id, .. } = hub.fetch(&id, Kind::Model)?;
    Ok(PathBuf::from(id.to_string()))
}

/// Reads a model folder, or one of the hub; linear layers that bitsandbytes packed stay packed.
///
/// # Errors
/// If it is no Hugging Face model folder, or its tensors do not fit.
pub fn load(path: &Path, classes: Option<usize>, init: &mut Init) -> Result<Loaded> {
    let folder = folder(path, Kind::Model)?;
    anyhow::ensure!(
        folder.is_dir(),
        "`{}` is no folder; expected one with config.json, model.safetensors and tokenizer.json, \
         or a name of the hub (`hf://organisation/name`)",
        folder.display()
    );
    Ok(models::load_with(&folder, classes, init, &BitsAndBytes)?)
}

/// How the linear layers of a model are packed, none where they are dense.
pub fn packing(model: &Model) -> Option<String> {
    struct Find(Option<String>);
    impl Surgeon for Find {
        fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
            self.0 = self.0.take().or_else(|| base.packing());
            base
        }
    }
    let mut find = Find(None);
    model.clone().rebuild(&mut find);
    find.0
}

/// A model's tokenizer.
///
/// # Errors
/// If it is missing or damaged, or has more tokens than the model.
pub fn tokenizer(path: &Path, model: &Model) -> Result<Tokenizer> {
    let folder = folder(path, Kind::Model)?;
    let tokenizer = read_tokenizer(&folder)?;
    let (tokens, rows) = (tokenizer.get_vocab_size(true), model.vocab_size());
    anyhow::ensure!(
        tokens <= rows,
        "the tokenizer of `{}` has {tokens} tokens but the model's embedding table only {rows} rows",
        folder.display()
    );
    Ok(tokenizer)
}

/// Reads the `tokenizer.json` of a folder; a limit or padding that it asks for is left to others.
pub(crate) fn read_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let file = folder.join("tokenizer.json");
    let cannot = || format!("cannot read tokenizer `{}`", file.display());
    let tokenizer = Tokenizer::from_file(&file).map_err(|e| anyhow::anyhow!("{e}"));
    tasks::tokenizer::unlimited(tokenizer.with_context(cannot)?).with_context(cannot)
}

/// The id of the token that ends a text.
///
/// # Errors
/// If the configuration names none and the tokenizer knows none of the usual ones.
pub fn eos(config: &Value, tokenizer: &Tokenizer) -> Result<u32> {
    let usual = ["<|endoftext|>", "</s>", "<|im_end|>"];
    ids(config)
        .first()
        .copied()
        .or_else(|| usual.iter().find_map(|token| tokenizer.token_to_id(token)))
        .context("the model's configuration names no `eos_token_id`")
}

/// The ids of all tokens that end a generated text: those of `generation_config.json` where it has
/// any, else the configuration's.
///
/// # Errors
/// If the file is damaged, or nothing names such a token.
pub fn ending_ids(path: &Path, config: &Value, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let file = folder(path, Kind::Model)?.join("generation_config.json");
    if file.exists() {
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read `{}`", file.display()))?;
        let generation: Value = serde_json::from_str(&text)
            .with_context(|| format!("`{}` is damaged", file.display()))?;
        let named = ids(&generation);
        if !named.is_empty() {
            return Ok(named);
        }
    }
    match ids(config) {
        named if named.is_empty() => Ok(vec![eos(config, tokenizer)?]),
        named => Ok(named),
    }
}

/// `eos_token_id`, which is a number or a list of them.
fn ids(config: &Value) -> Vec<u32> {
    let number = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    match &config["eos_token_id"] {
        Value::Array(several) => several.iter().filter_map(number).collect(),
        one => number(one).into_iter().collect(),
    }
}

/// SHA-256 of a model folder's configuration and weights, in hex.
///
/// # Errors
/// If a file cannot be read.
pub fn fingerprint(path: &Path) -> Result<String> {
    use sha2::Digest;
    let folder = folder(path, Kind::Model)?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
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
        std::fs::File::open(&file)
            .and_then(|mut content| std::io::copy(&mut content, &mut hasher))
            .with_context(|| format!("cannot read `{}`", file.display()))?;
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The ending ids of a folder with this `generation_config.json`.
    fn ending(generation: Option<&str>, config: Value) -> Result<Vec<u32>> {
        let folder = tempfile::tempdir().unwrap();
        if let Some(text) = generation {
            std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        }
        let texts = ["a text".to_string()];
        let tokenizer = tasks::tokenizer::train_bpe(&texts, 260).unwrap();
        ending_ids(folder.path(), &config, &tokenizer)
    }

    #[test]
    fn the_generation_configuration_says_what_ends_a_text_before_the_models() {
        let config = json!({ "eos_token_id": 7 });
        let several = Some(r#"{ "eos_token_id": [3, 5] }"#);
        assert_eq!(ending(several, config.clone()).unwrap(), [3, 5]);
        assert_eq!(ending(Some("{}"), config.clone()).unwrap(), [7]);
        assert_eq!(ending(None, config).unwrap(), [7]);
        assert_eq!(
            ending(None, json!({ "eos_token_id": [9, 8] })).unwrap(),
            [9, 8]
        );
        assert_eq!(ending(None, json!({})).unwrap(), [0]);
    }

    #[test]
    fn a_damaged_generation_configuration_is_an_error_that_names_it() {
        let error = ending(Some("{"), json!({ "eos_token_id": 7 })).unwrap_err();
        assert!(
            error.to_string().contains("generation_config.json"),
            "{error:#}"
        );
    }

    #[test]
    fn a_path_that_is_neither_folder_nor_name_says_what_may_stand_there() {
        let mut init = Init::new(0, &burn::tensor::Device::flex());
        let error = load(Path::new("/no/where"), None, &mut init).err().unwrap();
        assert!(
            error.to_string().contains("hf://organisation/name"),
            "{error:#}"
        );
        assert!(load(Path::new("hf://a/../../b"), None, &mut init).is_err());
    }
}
