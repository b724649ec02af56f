//! The tensors of a Hugging Face folder: one safetensors file, or several behind an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use burn::tensor::TensorData;
use peft_core::{CoreError, state};
use serde::Deserialize;

use crate::error::ModelError;

/// The file of an unsharded checkpoint.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of a sharded one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads every tensor of a model folder.
///
/// # Errors
/// If neither file is there, a shard is missing or outside the folder, or a file is damaged.
pub(crate) fn read(folder: &Path) -> Result<BTreeMap<String, TensorData>, ModelError> {
    let index = folder.join(INDEX);
    if !index.exists() {
        return Ok(state::load(&folder.join(SINGLE))?);
    }
    let weight_map = parse::<Index>(&index)?.weight_map;
    let shards: BTreeSet<_> = weight_map.values().collect();
    let mut tensors = BTreeMap::new();
    for shard in shards {
        tensors.extend(state::load(&folder.join(plain_name(shard, &index)?))?);
    }
    let absent: Vec<_> = weight_map
        .keys()
        .filter(|name| !tensors.contains_key(*name))
        .collect();
    if !absent.is_empty() {
        let reason = format!("names tensors that no shard holds: {absent:?}");
        return Err(ModelError::Index {
            file: index,
            reason,
        });
    }
    Ok(tensors)
}

/// A shard's name, if it stays inside the folder.
fn plain_name<'a>(shard: &'a str, index: &Path) -> Result<&'a Path, ModelError> {
    let path = Path::new(shard);
    let mut components = path.components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(_)), None) => Ok(path),
        _ => Err(ModelError::Index {
            file: index.into(),
            reason: format!("shard `{shard}` must be the name of a file in the same folder"),
        }),
    }
}

/// Reads a JSON file.
///
/// # Errors
/// If it cannot be read or does not parse; the error names the file.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, ModelError> {
    let text = std::fs::read_to_string(file).map_err(|e| CoreError::io(file, e))?;
    serde_json::from_str(&text).map_err(|e| ModelError::Json {
        file: PathBuf::from(file),
        reason: e.to_string(),
    })
}
