//! Prefix tuning: trained keys and values that every query sees, in every layer.
//!
//! Paper: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts", arXiv 2101.00190.
//! Seam: attention core. The prefix goes before the keys and values of the text; no reparametrising
//! network (the paper's is dropped after training anyway).

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Attend, AttendSlot, CoreError, Geometry, Heads, Init, Method, MethodConfig, MethodInfo, Pass,
    Start,
};
use serde::{Deserialize, Serialize};

/// Configuration of prefix tuning, `kind = "prefix"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefix {
    /// Number of virtual tokens in front of each layer's keys.
    pub num_virtual_tokens: usize,
    /// Standard deviation of the starting values.
    pub init_std: f64,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 16,
            init_std: 0.02,
        }
    }
}

impl MethodConfig for Prefix {
    const INFO: MethodInfo = MethodInfo {
        kind: "prefix",
        name: "Prefix",
        paper: "Li and Liang 2021, arXiv 2101.00190",
        seam: "attention core",
        formula: "2 n d_kv per layer",
        start: Start::Elsewhere("the prefix takes part of the attention from the first step on"),
        mergeable: false,
        size_key: Some("num_virtual_tokens"),
    };

    fn examples() -> Vec<Self> {
        vec![
            Prefix {
                num_virtual_tokens: 3,
                ..Self::default()
            },
            Prefix {
                num_virtual_tokens: 1,
                init_std: 0.5,
            },
        ]
    }
}

impl Method for Prefix {
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        if self.num_virtual_tokens == 0 {
            return Err(CoreError::bad_value("num_virtual_tokens", 0, "at least 1"));
        }
        if !(self.init_std >= 0.0 && self.init_std.is_finite()) {
            return Err(CoreError::bad_value(
                "init_std",
                self.init_std,
                "a number from 0 up",
            ));
        }
        Ok(())
    }

    fn attend(&self, _layer: usize, kv_width: usize, init: &mut Init) -> Option<AttendSlot> {
        let shape = [self.num_virtual_tokens, kv_width];
        Some(AttendSlot::new(PrefixAttention {
            keys: Param::from_tensor(init.normal(shape, self.init_std)),
            values: Param::from_tensor(init.normal(shape, self.init_std)),
        }))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        geometry.layers * 2 * self.num_virtual_tokens * geometry.kv_width
    }

    fn size(&self) -> Option<u64> {
        Some(self.num_virtual_tokens as u64)
    }
}

/// Attention with a trained prefix.
#[derive(Module, Debug)]
pub struct PrefixAttention {
    /// `[n, kv_width]`
    keys: Param<Tensor<2>>,
    /// `[n, kv_width]`
    values: Param<Tensor<2>>,
}

impl Attend for PrefixAttention {
    fn forward(&self, heads: Heads, _pass: &Pass<'_>) -> Tensor<3> {
        heads
            .with_prefix(self.keys.val(), self.values.val())
            .attend()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    peft_core::contract_tests!(Prefix);
}
