//! The files of adapter folders: JSON tables, and tensors in safetensors or PyTorch's pickles.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{TensorData, bf16, f16};
use peft_core::state::{self, Tensors};
use pytorch_reader::{DType, PytorchReader};
use serde_json::{Map, Value};

/// The configuration file of both Python libraries.
pub(super) const CONFIG: &str = "adapter_config.json";

/// A configuration file larger than this is none.
const MOST_JSON: u64 = 16 << 20;

/// Reads a JSON table.
pub(super) fn json(file: &Path) -> Result<Map<String, Value>> {
    let name = file.display();
    let size = std::fs::metadata(file)
        .with_context(|| format!("cannot read `{name}`"))?
        .len();
    ensure!(
        size <= MOST_JSON,
        "`{name}` has {size} bytes, expected a configuration of at most {MOST_JSON}"
    );
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{name}`"))?;
    match serde_json::from_str(&text).with_context(|| format!("`{name}` is not valid JSON"))? {
        Value::Object(table) => Ok(table),
        _ => bail!("`{name}` is no JSON table"),
    }
}

/// Reads the tensors of `{safetensors}` or, where it is missing, of the pickled `{pickled}`; none
/// where there is neither.
pub(super) fn tensors(folder: &Path, safetensors: &str, pickled: &str) -> Result<Option<Tensors>> {
    let file = folder.join(safetensors);
    if file.exists() {
        return Ok(Some(state::load(&file)?));
    }
    let file = folder.join(pickled);
    if file.exists() {
        return unpickled(&file).map(Some);
    }
    Ok(None)
}

/// The tensors of a PyTorch file. The reader knows tensors and plain values only: nothing in the
/// file is executed.
fn unpickled(file: &Path) -> Result<Tensors> {
    let name = file.display();
    let size = std::fs::metadata(file)?.len();
    let reader = PytorchReader::new(file)
        .with_context(|| format!("`{name}` is not a readable PyTorch file"))?;
    let mut tensors = Tensors::new();
    for (key, tensor) in reader.tensors() {
        // A view may declare more values than the file stores.
        ensure!(
            tensor.byte_len() as u64 <= size,
            "`{key}` of `{name}` claims {} bytes, more than the file has",
            tensor.byte_len()
        );
        let bytes = tensor
            .read()
            .with_context(|| format!("cannot read `{key}` of `{name}`"))?;
        let values = floats(tensor.dtype(), &bytes).with_context(|| {
            let dtype = tensor.dtype();
            format!("`{key}` of `{name}` has type {dtype:?}, expected floating-point numbers")
        })?;
        let shape = tensor.shape().to_vec();
        tensors.insert(key.clone(), TensorData::new(values, shape));
    }
    Ok(tensors)
}

fn floats(dtype: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    fn words<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let chunks = bytes.chunks_exact(N);
        chunks
            .map(|c| f(c.try_into().expect("chunks of N")))
            .collect()
    }
    match dtype {
        DType::F32 => Some(words(bytes, f32::from_le_bytes)),
        DType::F64 => Some(words(bytes, |b| f64::from_le_bytes(b) as f32)),
        DType::F16 => Some(words(bytes, |b| f16::from_le_bytes(b).to_f32())),
        DType::BF16 => Some(words(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

/// Writes a JSON table with sorted keys, as the Python libraries do.
pub(super) fn write_json(file: &Path, table: &Map<String, Value>) -> Result<()> {
    let sorted: std::collections::BTreeMap<_, _> = table.iter().collect();
    let text = serde_json::to_string_pretty(&sorted)?;
    Ok(state::write_atomically(file, text.as_bytes())?)
}
