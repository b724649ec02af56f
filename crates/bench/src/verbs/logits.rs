//! `logits`: token ids in, logits out, both as safetensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use clap::Args;
use models::Batch;
use peft_core::state;

use super::AdapterArgs;
use crate::cli::Compute;
use crate::registry::Registry;
use crate::token_file::TokenFile;

/// Arguments of `logits`.
#[derive(Args)]
pub struct Logits {
    /// Folder of the base model, or hf://organisation/name[@revision].
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    with: AdapterArgs,
    /// File with `input_ids` and (optional) `attention_mask`, `[batch, sequence]`.
    #[arg(long)]
    inputs: PathBuf,
    /// File for `logits`: `[batch, sequence, vocab]`, or `[batch, classes]` of a classifier. Of a
    /// parallel block they are the mean of its parts' own, which stand beside it as `NAME.logits`.
    #[arg(long)]
    out: PathBuf,
    /// The task whose head to ask, of an adapter that learnt several.
    #[arg(long, value_name = "NAME", requires = "adapter")]
    task: Option<String>,
    #[command(flatten)]
    compute: Compute,
}

impl Logits {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        let device = peft_core::device(&self.compute.device)?;
        let adapters = self.with.load(&self.model, None, registry, &device)?;
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
        let model = adapters.into_only()?;
        let host = &model.host;
        let limit = host.max_length().saturating_sub(model.position_offset);
        let tokens = TokenFile::read(&self.inputs, &["batch", "sequence"], host, limit)?;
        let rows = tokens.shape[0];
        let batch = Batch::from_parts(tokens.ids, tokens.mask, rows, host.positions(), &device);
        let batch = batch.of_tasks(&vec![task.unwrap_or(0); rows]);
        let data = |logits: Tensor<3>| match host.is_causal() {
            true => logits.into_data(),
            false => own(logits.squeeze_dim(1), task.map(|task| heads.range(task))).into_data(),
        };
        let (pass, all) = (model.pass(), models::logits_of_copies(&model, &batch));
        let mut tensors = BTreeMap::from([("logits".to_string(), data(pass.joined(all.clone())))]);
        if model.copies > 1 {
            let copies = pass.each_copy(all).into_iter().enumerate();
            tensors.extend(copies.map(|(part, logits)| (self.name_of(part), data(logits))));
        }
        Ok(state::save(&tensors, BTreeMap::new(), &self.out)?)
    }

    /// What the logits of a part are called: after the adapter that was named, or by its number among
    /// those of the one adapter.
    fn name_of(&self, part: usize) -> String {
        match (&self.with.compose, self.with.adapter.get(part)) {
            (Some(_), Some(adapter)) => format!("{}.logits", adapter.name),
            _ => format!("parts.{part}.logits"),
        }
    }
}

/// The logits of one task's head.
fn own(logits: Tensor<2>, head: Option<Range<usize>>) -> Tensor<2> {
    match head {
        Some(head) => logits.narrow(1, head.start, head.len()),
        None => logits,
    }
}
