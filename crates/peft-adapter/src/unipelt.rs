//! UniPELT: a prefix, bottleneck adapters and low-rank updates in one model, each behind gates that
//! learn how much of it a text needs.
//!
//! Paper: Mao et al. 2022, "UniPELT: A Unified Framework for Parameter-Efficient Language Model
//! Tuning", arXiv 2110.07577.
//! Seam: linear layers, attention core, sublayers; AdapterHub's `unipelt`, a `union` of three
//! configurations with `use_gating`. The gates are those of [`Gate`](peft_core::Gate): one for every
//! low-rank update, where it takes the place of the scaling, one for every layer's prefix, its keys
//! and values alike, and one for every bottleneck.

use std::sync::Arc;

use peft_core::{
    Assembler, AttendSlot, BaseParam, CoreError, EndsSlot, Fields, Foreign, Geometry, Init, Method,
    MethodConfig, MethodInfo, Proj, Role, SharedSlot, Site, Start, TapSlot, VirtualTokens,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Pfeiffer, Prefix, hub};

/// Configuration of UniPELT, `kind = "unipelt"`. `gating` is on in all three, whatever they say.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniPelt {
    /// The prefix, with the keys of `kind = "prefix"`.
    pub prefix: Prefix,
    /// The adapter, with the keys of `kind = "pfeiffer"`.
    pub adapter: Pfeiffer,
    /// The low-rank updates, with the keys of `kind = "lora"`.
    pub lora: Map<String, Value>,
    /// Their method, once it is assembled.
    #[serde(skip)]
    low_rank: Option<Arc<dyn Method>>,
}

impl Default for UniPelt {
    fn default() -> Self {
        // The sizes of the paper: bottlenecks of 48 in a model of width 768, rank 8.
        Self {
            prefix: Prefix {
                num_virtual_tokens: 10,
                prefix_projection: true,
                encoder_hidden_size: Some(512),
                ..Prefix::default()
            },
            adapter: Pfeiffer::default(),
            lora: Map::new(),
            low_rank: None,
        }
    }
}

impl UniPelt {
    /// The method of the low-rank updates.
    ///
    /// # Panics
    /// If it was not assembled, which [`Method::check`] refuses.
    fn low_rank(&self) -> &dyn Method {
        let method = self.low_rank.as_deref();
        method.expect("a checked configuration is assembled")
    }
}

impl MethodConfig for UniPelt {
    const INFO: MethodInfo = MethodInfo {
        kind: "unipelt",
        name: "UniPELT",
        paper: "Mao et al. 2022, arXiv 2110.07577",
        seam: "linear layers, attention core, sublayer: feed-forward",
        formula: "those of a prefix, of Pfeiffer adapters and of LoRA, and in + 1 per gate",
        start: Start::Elsewhere("the prefix takes part of the attention from the first step on"),
        mergeable: false,
        size_key: None,
    };

    // Its prefix starts as wide as in the Python libraries.
    const REVISION: u32 = 1;

    fn examples() -> Vec<Self> {
        let (adapter, _, _) = crate::examples::bottlenecks();
        let prefixes = Prefix::examples().into_iter();
        let example = |prefix| Self {
            prefix,
            adapter: adapter.clone(),
            lora: Map::from_iter([("rank".to_string(), json!(2))]),
            low_rank: None,
        };
        prefixes.map(example).collect()
    }

    fn assemble(mut self, assembler: &dyn Assembler) -> Result<Self, CoreError> {
        (self.prefix.gating, self.adapter.gating) = (true, true);
        self.lora.insert("gating".into(), true.into());
        let config = Value::Object(self.lora.clone());
        let method = assembler.method("lora", &config);
        let in_lora = |error| CoreError::Told(format!("`lora`: {error}"));
        self.low_rank = Some(method.map_err(in_lora)?);
        Ok(self)
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        _geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        let Some([prefix, adapter, lora]) = hub::union(fields, ["prefix", "pfeiffer", "lora"])?
        else {
            return Ok(None);
        };
        let is_gated = |config: &Map<String, Value>| config.get("gating") == Some(&true.into());
        if ![&prefix, &adapter, &lora].into_iter().all(is_gated) {
            return Ok(None);
        }
        Ok(Some(Self {
            prefix: hub::config_of(prefix)?,
            adapter: hub::config_of(adapter)?,
            lora,
            low_rank: None,
        }))
    }
}

impl Method for UniPelt {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        if self.low_rank.is_none() {
            let expected = "one made by a registry, which knows the method of `lora`";
            let found = "not assembled";
            return Err(CoreError::bad_value("the configuration", found, expected));
        }
        self.prefix.check(geometry)?;
        self.adapter.check(geometry)?;
        self.low_rank().check(geometry)
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        self.prefix.shared(geometry, init)
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        self.low_rank().project(site, base, init)
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

    /// A gate is a mean over a row.
    fn needs_own_rows(&self) -> bool {
        true
    }

    fn trains(&self, param: &BaseParam) -> bool {
        self.low_rank().trains(param)
    }

    fn unties_head(&self, geometry: &Geometry) -> bool {
        self.low_rank().unties_head(geometry)
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let (prefix, adapter) = (&self.prefix, &self.adapter);
        let low_rank = self.low_rank().parameters(geometry);
        prefix.parameters(geometry) + adapter.parameters(geometry) + low_rank
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        let prefix = self.prefix.adapter_hub(geometry, name)?;
        let adapter = self.adapter.adapter_hub(geometry, name)?;
        let low_rank = self.low_rank().adapter_hub(geometry, name)?;
        Some(hub::as_union([prefix, adapter, low_rank]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_take_the_keys_they_take_alone() {
        let keys = json!({
            "prefix": {"num_virtual_tokens": 5}, "adapter": {"bottleneck": 7}, "lora": {"rank": 3}
        });
        let method: UniPelt = serde_json::from_value(keys).unwrap();
        assert_eq!(method.prefix.num_virtual_tokens, 5);
        assert_eq!(method.adapter.bottleneck, Some(7));
        for keys in [json!({"prefix": {"tokens": 5}}), json!({"tokens": 5})] {
            let error = serde_json::from_value::<UniPelt>(keys).unwrap_err();
            assert!(error.to_string().contains("tokens"), "{error}");
        }
    }

    #[test]
    fn without_a_registry_it_is_refused_and_not_run() {
        let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut Init::new(
            0,
            &burn::tensor::Device::flex(),
        ));
        let geometry = peft_core::Host::geometry(&toy);
        let error = UniPelt::default().check(&geometry).unwrap_err().to_string();
        assert!(error.contains("not assembled"), "{error}");
    }
}
