//! C3A: an update of circulant blocks, each one circular convolution.
//!
//! Paper: Chen et al. 2024, "Parameter-Efficient Fine-Tuning via Circular Convolution", arXiv
//! 2407.19342.
//! Seam: linear layers. The block of the update from input part `n` to output part `m` is
//! `w[m, n, (s - t) mod block_size] / in` at row `s` and column `t`. Starts at zero, one of the starts
//! of HF PEFT; its default draws small random kernels.
//!
//! The dense update is laid out from the kernels in each pass and added to the weight: one product with
//! any input then, at the speed of any other, where a Fourier transform of each block would need one
//! for every length.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, Site, Start, Targets, check, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{key, peft_targets_of, place, selected, with_dense_update};

/// Configuration of C3A, `kind = "c3a"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct C3a {
    /// Side of a block; it divides both widths of every target. The larger, the fewer parameters.
    pub block_size: usize,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for C3a {
    fn default() -> Self {
        Self {
            block_size: 256,
            targets: Targets::Default,
        }
    }
}

impl MethodConfig for C3a {
    const INFO: MethodInfo = MethodInfo {
        kind: "c3a",
        name: "C3A",
        paper: "Chen et al. 2024, arXiv 2407.19342",
        seam: "linear layers",
        formula: "in out / block per target",
        start: Start::Identity,
        mergeable: true,
        size_key: Some("block_size"),
    };

    fn examples() -> Vec<Self> {
        let of = |block_size| C3a {
            block_size,
            targets: Targets::all_linear(),
        };
        vec![of(4), of(2)]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "C3A" {
            return Ok(None);
        }
        fields.ignore(&["init_weights"]);
        Ok(Some(C3a {
            targets: peft_targets_of(fields, geometry)?,
            block_size: fields.take("block_size")?.unwrap_or(256),
        }))
    }
}

impl Method for C3a {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        let size = self.block_size;
        check::size("block_size", size)?;
        for site in self.targets.select(&geometry.sites)? {
            for width in [site.d_in, site.d_out] {
                if !width.is_multiple_of(size) {
                    let expected = format!("a divisor of {width}, a width of `{}`", site.path);
                    return Err(CoreError::bad_value("block_size", size, &expected));
                }
            }
        }
        Ok(())
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        let size = self.block_size;
        Proj::new(C3aLinear {
            kernel: Param::from_tensor(init.zeros([site.d_out / size, site.d_in / size, size])),
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let sites = selected(&self.targets, geometry);
        sites
            .map(|site| site.d_in / self.block_size * site.d_out)
            .sum()
    }

    fn size(&self) -> Option<u64> {
        Some(self.block_size as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        // PEFT's layer is one of PyTorch's `Linear` only.
        if geometry.keeps_weights_in_out() {
            return None;
        }
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "C3A", "block_size": self.block_size, "bias": "none",
            "block_size_pattern": {}, "target_modules": peft_targets(&sites, geometry),
            "init_weights": true,
        });
        let rule = |site: &&Site| Rule::as_is(place(site, "kernel"), key(site, "c3a_kernel"));
        Some(Foreign::new(fields, sites.iter().map(rule).collect()))
    }
}

/// A linear layer with an update of circulant blocks.
#[derive(Module, Debug)]
pub struct C3aLinear {
    base: Proj,
    /// `[output parts, input parts, block size]`
    kernel: Param<Tensor<3>>,
}

impl C3aLinear {
    /// The update as a dense matrix, `[d_in, d_out]`.
    fn update(&self) -> Tensor<2> {
        let [_, inputs, size] = self.kernel.lazy_shape().dims();
        let share = 1.0 / (inputs * size) as f64;
        kernels::circulant(self.kernel.val().mul_scalar(share))
    }
}

impl Reweighted for C3aLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        with_dense_update(&self.base, x, self.update(), pass)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) + self.update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::testing::{computes, device, site, stirred};
    use burn::tensor::TensorData;
    use peft_core::Role;

    peft_core::contract_tests!(C3a);

    #[test]
    fn every_block_of_the_update_is_circulant() {
        let c3a = C3a {
            block_size: 3,
            ..C3a::default()
        };
        let proj = stirred(&c3a, &site(Role::Query, 6, 9));
        let layer: &C3aLinear = proj.downcast_ref().unwrap();
        let data = layer.kernel.val().into_data();
        let kernel: Vec<f32> = data.try_to_vec().unwrap();
        let mut update = vec![0.0; 6 * 9];
        for (row, column) in (0..6).flat_map(|row| (0..9).map(move |column| (row, column))) {
            let (n, s, m, t) = (row / 3, row % 3, column / 3, column % 3);
            update[row * 9 + column] = kernel[(m * 2 + n) * 3 + (s + 3 - t) % 3] / 6.0;
        }
        let update = Tensor::from_data(TensorData::new(update, [6, 9]), &device());
        let pass = Pass::new();
        let weight = layer.base.weight(&pass) + update;
        computes(&proj, &pass, weight, layer.base.bias().unwrap());
    }
}
