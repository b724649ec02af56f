//! `speed`: how long a training step takes, and what memory it needs.

use anyhow::Result;
use clap::Args;
use peft_core::{Init, adapt};

use crate::cli::{Compute, print};
use crate::flops::flops;
use crate::registry::Registry;
use crate::speed::{self, Subject, Work};
use crate::study::MethodRow;
use crate::trial::single;
use crate::{memory, source, wording};

/// Arguments of `speed`.
#[derive(Args)]
pub struct Speed {
    /// A named shape with random weights.
    #[arg(long, value_parser = source::shape_names())]
    shape: String,
    /// The method as inline TOML, with `storage` if it is to be packed.
    #[arg(long)]
    method: String,
    /// Sequences a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Steps that are timed, after two that are not.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Compute layers again in the backward pass, in place of keeping their activations.
    #[arg(long)]
    checkpointing: bool,
    /// Wait for a line on standard input before every step, and say `ready` when waiting: for
    /// alternating with another program step by step.
    #[arg(long)]
    paced: bool,
    #[command(flatten)]
    compute: Compute,
}

impl Speed {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        let compute = self.compute.clone();
        compute.run(|| self.measure(registry))
    }

    fn measure(&self, registry: &Registry) -> Result<()> {
        let program = memory::peak_rss();
        let device = peft_core::device(&self.compute.device)?.autodiff();
        let row = MethodRow::inline(&self.method)?;
        let (kind, config, storage) = single(&row, registry)?;
        let mut init = Init::new(0, &device);
        let base = source::shape(&self.shape, &mut init)?;
        let config = wording::for_model(config, None, &base)?;
        let method = registry.parse(&kind, &config)?;
        let work = Work {
            batch: self.batch,
            seq: self.seq,
            steps: self.steps,
            checkpointing: self.checkpointing,
        };
        let flop = flops(&base, &*method, work);
        let model = adapt(base, &*method, storage.build(), &mut init)?;
        let subject = Subject {
            model,
            program,
            flop,
        };
        let pace = || {
            if self.paced {
                speed::wait_for_a_line()
            } else {
                Ok(())
            }
        };
        let figures = speed::measure(subject, work, &device, pace)?;
        let mut line = serde_json::json!({
            "shape": self.shape, "kind": kind, "config": config, "storage": storage,
            "device": self.compute.device, "threads": self.compute.threads,
            "batch": self.batch, "seq": self.seq, "steps": self.steps,
            "checkpointing": self.checkpointing,
        });
        let figures = serde_json::to_value(figures)?;
        let both = line.as_object_mut().zip(figures.as_object());
        if let Some((line, figures)) = both {
            line.extend(figures.clone());
        }
        print(&format!("{line}\n"))
    }
}
