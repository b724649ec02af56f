//! MAM adapters ("mix and match"): a prefix in the attention, a scaled parallel adapter beside the
//! feed-forward sublayer.
//!
//! Paper: He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv
//! 2110.04366.
//! Seam: attention core and sublayers; AdapterHub's `mam`, a `union` of the two.

use peft_core::{
    AttendSlot, CoreError, EndsSlot, Fields, Foreign, Geometry, Init, Method, MethodConfig,
    MethodInfo, Role, SharedSlot, Start, TapSlot, VirtualTokens,
};
use serde::{Deserialize, Serialize};

use crate::{Parallel, Prefix, hub};

/// Configuration of MAM adapters, `kind = "mam"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mam {
    /// The prefix, with the keys of `kind = "prefix"`.
    pub prefix: Prefix,
    /// The adapter, with the keys of `kind = "parallel"`.
    pub adapter: Parallel,
}

impl Default for Mam {
    fn default() -> Self {
        // The sizes of the paper; the width of its network is AdapterHub's.
        Self {
            prefix: Prefix {
                num_virtual_tokens: 30,
                prefix_projection: true,
                encoder_hidden_size: Some(800),
                ..Prefix::default()
            },
            adapter: Parallel {
                bottleneck: Some(512),
                ..Parallel::default()
            },
        }
    }
}

impl MethodConfig for Mam {
    const INFO: MethodInfo = MethodInfo {
        kind: "mam",
        name: "MAM",
        paper: "He et al. 2022, arXiv 2110.04366",
        seam: "attention core, sublayer: feed-forward",
        formula: "those of a prefix and of parallel adapters",
        start: Start::Elsewhere("the prefix takes part of the attention from the first step on"),
        mergeable: false,
        size_key: None,
    };

    // Its prefix starts as wide as in the Python libraries.
    const REVISION: u32 = 1;

    fn examples() -> Vec<Self> {
        let (_, _, adapter) = crate::examples::bottlenecks();
        let prefixes = Prefix::examples().into_iter();
        let mam = |prefix| Self {
            prefix,
            adapter: adapter.clone(),
        };
        prefixes.map(mam).collect()
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        _geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        let Some([prefix, adapter]) = hub::union(fields, ["prefix", "parallel"])? else {
            return Ok(None);
        };
        Ok(Some(Self {
            prefix: hub::config_of(prefix)?,
            adapter: hub::config_of(adapter)?,
        }))
    }
}

impl Method for Mam {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        self.prefix.check(geometry)?;
        self.adapter.check(geometry)
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        self.prefix.shared(geometry, init)
    }

    fn attend_in(&self, layer: usize, geometry: &Geometry, init: &mut Init) -> Option<AttendSlot> {
        self.prefix.attend_in(layer, geometry, init)
    }

    fn tap(&self, layer: usize, role: Role, width: usize, init: &mut Init) -> Option<TapSlot> {
        self.adapter.tap(layer, role, width, init)
    }

    fn ends(&self, width: usize, init: &mut Init) -> Option<EndsSlot> {
        self.adapter.ends(width, init)
    }

    fn position_offset(&self) -> usize {
        self.prefix.position_offset()
    }

    fn virtual_tokens(&self) -> VirtualTokens {
        self.prefix.virtual_tokens()
    }

    fn needs_own_rows(&self) -> bool {
        self.prefix.needs_own_rows() || self.adapter.needs_own_rows()
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        self.prefix.parameters(geometry) + self.adapter.parameters(geometry)
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        let prefix = self.prefix.adapter_hub(geometry, name)?;
        let adapter = self.adapter.adapter_hub(geometry, name)?;
        Some(hub::as_union([prefix, adapter]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    peft_core::contract_tests!(Mam);

    #[test]
    fn the_parts_take_the_keys_they_take_alone() {
        let keys = json!({"prefix": {"num_virtual_tokens": 5}, "adapter": {"bottleneck": 7}});
        let mam: Mam = serde_json::from_value(keys).unwrap();
        assert_eq!(mam.prefix.num_virtual_tokens, 5);
        assert_eq!(mam.adapter.bottleneck, Some(7));
        let misspelt = json!({"adapter": {"botleneck": 7}});
        let error = serde_json::from_value::<Mam>(misspelt).unwrap_err();
        assert!(error.to_string().contains("botleneck"), "{error}");
    }
}
