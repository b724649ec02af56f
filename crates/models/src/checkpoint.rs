//! The tensors of a Hugging Face folder: one safetensors file, or several behind an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use peft_core::{CoreError, state};
use serde::Deserialize;

use crate::error::ModelError;

/// The file of an unsharded checkpoint.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of a sharded one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Longest JSON file that is read. The indices of the largest models are below a tenth of it.
const MOST_JSON: u64 = 64 << 20;

/// Tensors by name, and the file that errors about them point to.
pub(crate) struct Checkpoint {
    pub(crate) tensors: BTreeMap<String, TensorData>,
    pub(crate) file: PathBuf,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads every tensor of a model folder.
///
/// # Errors
/// If neither file is there, a shard is missing or outside the folder, a file is damaged, or a
/// weight is no finite number.
pub(crate) fn read(folder: &Path) -> Result<Checkpoint, ModelError> {
    let index = folder.join(INDEX);
    if !index.exists() {
        let file = folder.join(SINGLE);
        let tensors = read_file(&file)?;
        return Ok(Checkpoint { tensors, file });
    }
    let weight_map = parse::<Index>(&index)?.weight_map;
    let problem = |reason| ModelError::Index {
        file: index.clone(),
        reason,
    };
    let names: BTreeSet<_> = weight_map.values().collect();
    // All names before any file: a bad one must not cost a long read.
    let names = names.into_iter().map(|name| match is_plain(name) {
        true => Ok(name),
        false => Err(problem(format!(
            "shard `{name}` must be the name of a file in the same folder"
        ))),
    });
    let mut tensors = BTreeMap::new();
    for name in names.collect::<Result<Vec<_>, _>>()? {
        for (tensor, data) in read_file(&folder.join(name))? {
            if tensors.insert(tensor.clone(), data).is_some() {
                return Err(problem(format!(
                    "`{tensor}` is in `{name}` and in another shard"
                )));
            }
        }
    }
    let absent = weight_map
        .keys()
        .filter(|name| !tensors.contains_key(*name));
    let absent: Vec<_> = absent.collect();
    if !absent.is_empty() {
        return Err(problem(format!(
            "names tensors that no shard holds: {absent:?}"
        )));
    }
    Ok(Checkpoint {
        tensors,
        file: index,
    })
}

/// Reads one safetensors file; every weight in it must be a finite number.
fn read_file(file: &Path) -> Result<BTreeMap<String, TensorData>, CoreError> {
    // A device or a pipe could go on for ever.
    let metadata = std::fs::metadata(file).map_err(|e| CoreError::io(file, e))?;
    let error = |reason: String| CoreError::Safetensors {
        file: file.into(),
        reason,
    };
    if !metadata.is_file() {
        return Err(error("it is no regular file".into()));
    }
    let tensors = state::load(file)?;
    for (name, data) in &tensors {
        if let Some((place, value)) = not_finite(data) {
            return Err(error(format!(
                "`{name}` holds {value} at {place}, expected finite numbers; the file is damaged \
                 or comes from a run that diverged"
            )));
        }
    }
    Ok(tensors)
}

/// The first value that is no finite number, and its place.
fn not_finite(data: &TensorData) -> Option<(usize, f32)> {
    if data.dtype() != DType::F32 {
        return None;
    }
    let values = data.as_slice::<f32>().ok()?;
    values
        .iter()
        .copied()
        .enumerate()
        .find(|(_, value)| !value.is_finite())
}

/// Whether a shard's name stays inside the folder, on any system.
fn is_plain(name: &str) -> bool {
    let leads_elsewhere = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    !name.is_empty() && name != "." && name != ".." && !name.contains(leads_elsewhere)
}

/// Reads a JSON file.
///
/// # Errors
/// If it cannot be read, is too long or does not parse; the error names the file.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, ModelError> {
    let invalid = |reason: String| ModelError::Json {
        file: PathBuf::from(file),
        reason,
    };
    let open = File::open(file).map_err(|e| CoreError::io(file, e))?;
    let mut bytes = Vec::new();
    open.take(MOST_JSON + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| CoreError::io(file, e))?;
    if bytes.len() as u64 > MOST_JSON {
        return Err(invalid(format!("it is longer than {MOST_JSON} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))
}
