//! `compare`: the largest difference between two safetensors files.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use peft_core::state;

use crate::cli::print;

/// Arguments of `compare`.
#[derive(Args)]
pub struct Compare {
    /// A safetensors file.
    a: PathBuf,
    /// Another with the same tensors.
    b: PathBuf,
    /// Largest absolute difference that passes.
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
}

impl Compare {
    pub(crate) fn run(self) -> Result<()> {
        let (a, mut b) = (state::load(&self.a)?, state::load(&self.b)?);
        for (name, data) in a {
            let other = b.remove(&name);
            let other = other.with_context(|| format!("`{}` has no `{name}`", self.b.display()))?;
            let (shape, found) = (data.shape().to_vec(), other.shape().to_vec());
            ensure!(
                shape == found,
                "`{name}` has shapes {shape:?} and {found:?}"
            );
            let (x, y) = (data.convert::<f64>(), other.convert::<f64>());
            let (x, y): (Vec<f64>, Vec<f64>) = (x.try_to_vec()?, y.try_to_vec()?);
            let largest = x
                .iter()
                .zip(&y)
                .map(|(x, y)| (x - y).abs())
                .fold(0.0, nan_max);
            print(&format!("{name}: largest difference {largest:.2e}\n"))?;
            let limit = self.tolerance;
            ensure!(
                largest <= limit,
                "`{name}` differs by {largest:.2e}, allowed are {limit:.0e}"
            );
        }
        ensure!(b.is_empty(), "`{}` lacks {:?}", self.a.display(), b.keys());
        Ok(())
    }
}

/// The larger, and a NaN if there is one: a comparison must not pass over it.
fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_never_within_a_tolerance() {
        assert!([0.1, f64::NAN, 0.2].into_iter().fold(0.0, nan_max).is_nan());
        assert_eq!([0.1, 0.3].into_iter().fold(0.0, nan_max), 0.3);
    }
}
