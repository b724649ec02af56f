//! `quantize`: packs a model's linear layers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use peft_core::Role;

use crate::cli::print;
use crate::quantize::{Loss, quantize};
use crate::storage::{PackingArgs, StorageName};

/// Arguments of `quantize`.
#[derive(Args)]
pub struct Quantize {
    /// Folder of a model with dense weights.
    #[arg(long)]
    model: PathBuf,
    /// How to store the weights of linear layers: nf4, fp4 or int8.
    #[arg(long, value_enum)]
    storage: StorageName,
    #[command(flatten)]
    packing: PackingArgs,
    /// Folder to write; it must not hold anything.
    #[arg(long)]
    out: PathBuf,
}

impl Quantize {
    pub(crate) fn run(self) -> Result<()> {
        let spec = self.packing.of(self.storage)?;
        let storage = spec.build();
        let storage =
            storage.context("`--storage f32` packs nothing; expected nf4, fp4 or int8")?;
        let losses = quantize(&self.model, storage, &self.out)?;
        let packing = storage.packing();
        print(&format!(
            "{}{packing}: {}\n",
            table(&losses),
            self.out.display()
        ))
    }
}

/// What packing lost, by role.
pub(super) fn table(losses: &BTreeMap<Role, Loss>) -> String {
    let mut text = format!(
        "{:<12} {:>7} {:>12} {:>9} {:>11} {:>9}\n",
        "role", "layers", "weights", "bits each", "RMSE", "relative"
    );
    let mut total = Loss::default();
    for (role, loss) in losses {
        text += &line(role.name(), loss);
        total.add(loss);
    }
    text + &line("all", &total)
}

fn line(name: &str, loss: &Loss) -> String {
    format!(
        "{name:<12} {:>7} {:>12} {:>9.3} {:>11.3e} {:>8.3}%\n",
        loss.layers,
        loss.weights,
        loss.bits(),
        loss.rmse(),
        100.0 * loss.relative()
    )
}
