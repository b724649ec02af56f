//! Token ids and masks given as tensors of a safetensors file.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use models::Model;
use peft_core::state::{self, Tensors};

/// Token ids with their mask, in rows of one length.
pub struct TokenFile {
    name: String,
    tensors: Tensors,
    /// Token ids, row by row.
    pub ids: Vec<u32>,
    /// 1 at real tokens and 0 at padding; all 1 where the file has no mask.
    pub mask: Vec<f32>,
    /// The shape of the ids.
    pub shape: Vec<usize>,
}

impl TokenFile {
    /// Reads `input_ids` and (optional) `attention_mask` with these axes: `["batch", "sequence"]`.
    ///
    /// # Errors
    /// If they are missing, of another shape, hold ids the model does not know, or are longer than
    /// the model's positions.
    pub fn read(file: &Path, axes: &[&str], model: &Model, positions: usize) -> Result<Self> {
        let name = file.display().to_string();
        let mut tensors = state::load(file)?;
        let ids = tensors
            .remove("input_ids")
            .with_context(|| format!("`{name}` has no tensor `input_ids`"))?;
        let shape = ids.shape().to_vec();
        ensure!(
            shape.len() == axes.len(),
            "`input_ids` has shape {shape:?}, expected [{}]",
            axes.join(", ")
        );
        ensure!(
            shape.iter().all(|n| *n > 0),
            "`input_ids` has shape {shape:?}, which is empty"
        );
        let ids: Vec<i64> = ids.convert::<i64>().try_to_vec()?;
        let vocab = model.vocab_size() as i64;
        if let Some(id) = ids.iter().find(|id| !(0..vocab).contains(*id)) {
            anyhow::bail!("`input_ids` holds {id}, expected ids from 0 to below {vocab}");
        }
        let length = shape[shape.len() - 1];
        ensure!(
            length <= positions,
            "{length} tokens exceed the model's {positions} positions"
        );
        let mask = match tensors.remove("attention_mask") {
            Some(mask) => {
                let found = mask.shape().to_vec();
                ensure!(
                    found == shape,
                    "`attention_mask` has shape {found:?}, expected {shape:?}"
                );
                mask.convert::<f32>().try_to_vec()?
            }
            None => vec![1.0; ids.len()],
        };
        Ok(Self {
            name,
            tensors,
            ids: ids.into_iter().map(|id| id as u32).collect(),
            mask,
            shape,
        })
    }

    /// Takes another tensor of whole numbers out of the file.
    ///
    /// # Errors
    /// If it is missing or of another shape than all of these.
    pub fn integers(&mut self, tensor: &str, shapes: &[&[usize]]) -> Result<Vec<i64>> {
        let name = &self.name;
        let data = self.tensors.remove(tensor);
        let data = data.with_context(|| format!("`{name}` has no tensor `{tensor}`"))?;
        let found = data.shape().to_vec();
        ensure!(
            shapes.contains(&found.as_slice()),
            "`{tensor}` of `{name}` has shape {found:?}, expected one of {shapes:?}"
        );
        Ok(data.convert::<i64>().try_to_vec()?)
    }
}
