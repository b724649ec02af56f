//! `logits`: token ids in, logits out, both as safetensors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use models::{Batch, Model};
use peft_core::state;

use crate::cli::Compute;
use crate::registry::Registry;

/// Arguments of `logits`.
#[derive(Args)]
pub struct Logits {
    /// Folder of the base model, or hf://organisation/name[@revision].
    #[arg(long)]
    model: PathBuf,
    /// Folder of a trained adapter, or its hub name.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// File with `input_ids` and (optional) `attention_mask`, `[batch, sequence]`.
    #[arg(long)]
    inputs: PathBuf,
    /// File for `logits`: `[batch, sequence, vocab]`, or `[batch, classes]` of a classifier.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    compute: Compute,
}

impl Logits {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        let device = peft_core::device(&self.compute.device)?;
        let model = super::load(&self.model, self.adapter.as_deref(), registry, &device)?;
        let (ids, mask, rows) = self.inputs(&model.host)?;
        let positions = model.host.positions();
        let batch = Batch::from_parts(ids, mask, rows, positions, &device);
        let logits = models::logits(&model, &batch);
        let logits = match model.host.is_causal() {
            true => logits.into_data(),
            false => logits.squeeze_dim::<2>(1).into_data(),
        };
        let tensors = BTreeMap::from([("logits".to_string(), logits)]);
        Ok(state::save(&tensors, BTreeMap::new(), &self.out)?)
    }

    fn inputs(&self, model: &Model) -> Result<(Vec<u32>, Vec<f32>, usize)> {
        let file = self.inputs.display();
        let mut tensors = state::load(&self.inputs)?;
        let ids = tensors
            .remove("input_ids")
            .with_context(|| format!("`{file}` has no tensor `input_ids`"))?;
        let shape = ids.shape().to_vec();
        ensure!(
            shape.len() == 2,
            "`input_ids` has shape {shape:?}, expected [batch, sequence]"
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
        let limit = model.max_length();
        ensure!(
            shape[1] <= limit,
            "{} tokens exceed the model's {limit} positions",
            shape[1]
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
        Ok((
            ids.into_iter().map(|id| id as u32).collect(),
            mask,
            shape[0],
        ))
    }
}
