//! `logits`: token ids in, logits out, both as safetensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use clap::Args;
use models::Batch;
use peft_core::state;

use crate::cli::Compute;
use crate::registry::Registry;
use crate::storage::StorageArgs;
use crate::token_file::TokenFile;

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
    /// The task whose head to ask, of an adapter that learnt several.
    #[arg(long, value_name = "NAME", requires = "adapter")]
    task: Option<String>,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    compute: Compute,
}

impl Logits {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        let device = peft_core::device(&self.compute.device)?;
        let adapter = self.adapter.as_deref();
        let adapters = super::load(&self.model, adapter, None, &self.storage, registry, &device)?;
        ensure!(
            adapters.untrained().is_empty(),
            "`{}` has no {}, so its logits would be random; give an `--adapter` that brings them, or \
             a model trained to classify",
            self.model.display(),
            adapters.untrained().join(", ")
        );
        let heads = adapters.heads();
        let task = match self.task.is_some() || heads.are_of_tasks() {
            true => Some(heads.number(self.task.as_deref())?),
            false => None,
        };
        let model = adapters.into_last();
        let host = &model.host;
        let limit = host.max_length().saturating_sub(model.position_offset);
        let tokens = TokenFile::read(&self.inputs, &["batch", "sequence"], host, limit)?;
        let rows = tokens.shape[0];
        let batch = Batch::from_parts(tokens.ids, tokens.mask, rows, host.positions(), &device);
        let batch = batch.of_tasks(&vec![task.unwrap_or(0); rows]);
        let logits = models::logits(&model, &batch);
        let logits = match host.is_causal() {
            true => logits.into_data(),
            false => own(logits.squeeze_dim(1), task.map(|task| heads.range(task))).into_data(),
        };
        let tensors = BTreeMap::from([("logits".to_string(), logits)]);
        Ok(state::save(&tensors, BTreeMap::new(), &self.out)?)
    }
}

/// The logits of one task's head.
fn own(logits: Tensor<2>, head: Option<Range<usize>>) -> Tensor<2> {
    match head {
        Some(head) => logits.narrow(1, head.start, head.len()),
        None => logits,
    }
}
