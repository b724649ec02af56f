//! `quantize`: packs a model's linear layers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use peft_core::{Role, Storage};
use peft_qlora::{Fp4, Int8, Nf4};

use crate::cli::print;
use crate::quantize::{Loss, quantize};

/// Arguments of `quantize`.
#[derive(Args)]
pub struct Quantize {
    /// Folder of a model with dense weights.
    #[arg(long)]
    model: PathBuf,
    /// How to store the weights of linear layers.
    #[arg(long, value_enum)]
    storage: Kind,
    /// Weights that share one scale, of 4-bit storages: a power of two from 32 to 4096 [default: 64].
    #[arg(long)]
    block_size: Option<usize>,
    /// Keep the scales of 4-bit storages in 8 bits too.
    #[arg(long)]
    double_quant: bool,
    /// Folder to write; it must not hold anything.
    #[arg(long)]
    out: PathBuf,
}

/// The storages by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit floating point.
    Fp4,
    /// 8 bits, one scale a row.
    Int8,
}

impl Quantize {
    pub(crate) fn run(self) -> Result<()> {
        let storage = self.storage()?;
        let losses = quantize(&self.model, &*storage, &self.out)?;
        let packing = storage.packing();
        print(&format!(
            "{}{packing}: {}\n",
            table(&losses),
            self.out.display()
        ))
    }

    fn storage(&self) -> Result<Box<dyn Storage>> {
        let size = self.block_size.unwrap_or(64);
        Ok(match self.storage {
            Kind::Nf4 => Box::new(Nf4::new(size, self.double_quant)),
            Kind::Fp4 => Box::new(Fp4::new(size, self.double_quant)),
            Kind::Int8 => {
                ensure!(
                    self.block_size.is_none() && !self.double_quant,
                    "`--block-size` and `--double-quant` are for nf4 and fp4; int8 has one scale a row"
                );
                Box::new(Int8 {})
            }
        })
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
