//! An adapter that goes without its lowest layers, as one that never had them: in the formats of
//! others there is no other way to say so.

use anyhow::{Context, Result};
use models::Model;
use peft_core::exchange::path_ends_with;
use peft_core::{Geometry, Host, Proj, Site, Surgeon, Targets};
use serde_json::{Map, Value};

use super::Fitted;
use crate::registry::Registry;

/// The key of methods on linear layers that names those, and of others that lists layers.
const TARGETS: &str = "targets";
const LEAVE_OUT: &str = "leave_out";
/// Those that have settings for single linear layers, by the ends of their paths.
const PATTERNS: [&str; 2] = ["rank_pattern", "alpha_pattern"];

impl Fitted {
    /// The adapter without the layers it drops, which its configuration then leaves out itself.
    ///
    /// # Errors
    /// If the method cannot leave single layers out.
    pub fn narrowed(self, registry: &Registry) -> Result<Self> {
        let dropped = self.card.dropped_layers;
        if dropped == 0 {
            return Ok(self);
        }
        let kind = self.card.kind.clone();
        let cannot = || {
            format!(
                "`{kind}` goes without its lowest {dropped} layers here, which it has no form for; \
                 `--drop-layers 0` writes all of them"
            )
        };
        let geometry = self.model.host.geometry();
        let model = self.evaluated();
        let config = registry.in_full(&kind, &self.card.config);
        let mut config = config.with_context(cannot)?;
        let keys = config.as_object_mut().with_context(cannot)?;
        let paths = adapted(&model.host);
        leave_out(keys, dropped, paths, &geometry).with_context(cannot)?;
        let method = registry.parse(&kind, &config).with_context(cannot)?;
        method.check(&geometry).with_context(cannot)?;
        let mut card = self.card.clone();
        (card.config, card.dropped_layers) = (config, 0);
        Ok(Self {
            model,
            method,
            card,
        })
    }
}

/// Leaves the lowest layers out of a method's configuration; the linear layers it stands on
/// otherwise have these paths.
fn leave_out(
    keys: &mut Map<String, Value>,
    dropped: usize,
    paths: Vec<String>,
    geometry: &Geometry,
) -> Result<()> {
    let Some(found) = keys.get_mut(TARGETS) else {
        // A method that cannot leave layers out refuses the key.
        let layers = keys
            .entry(LEAVE_OUT)
            .or_insert_with(|| Value::Array(Vec::new()));
        let mut listed: Vec<usize> = serde_json::from_value(layers.take())?;
        let more = (0..dropped).filter(|layer| !listed.contains(layer));
        let more: Vec<usize> = more.collect();
        listed.extend(more);
        *layers = listed.into();
        return Ok(());
    };
    let targets: Targets = serde_json::from_value(found.take())?;
    let is_of_blocks = |name: &&String| {
        let one = Targets::One((*name).clone());
        geometry.sites.iter().any(|site| one.contains(site))
    };
    // An embedding is in no layer.
    let others = targets.names().iter().filter(|name| !is_of_blocks(name));
    let names: Vec<String> = paths.into_iter().chain(others.cloned()).collect();
    let table = Some(&geometry.table).filter(|table| targets.name_table(table));
    let stays = |layer: &String| {
        let paths = names.iter().chain(table.map(|table| &table.path));
        paths.into_iter().any(|path| path_ends_with(path, layer))
    };
    for key in PATTERNS {
        if let Some(Value::Object(pattern)) = keys.get_mut(key) {
            pattern.retain(|layer, _| stays(layer));
        }
    }
    keys.insert(TARGETS.into(), names.into());
    Ok(())
}

/// The paths of the linear layers on which a method stands.
fn adapted(host: &Model) -> Vec<String> {
    struct Find(Vec<String>);
    impl Surgeon for Find {
        fn projection(&mut self, site: &Site, base: Proj) -> Proj {
            if base.base().is_some() {
                self.0.push(site.path.clone());
            }
            base
        }
    }
    let mut find = Find(Vec::new());
    drop(host.clone().rebuild(&mut find));
    find.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing;
    use peft_core::Init;

    fn narrowed(config: Value) -> Result<Value> {
        let model = testing::gpt2(&mut Init::new(0, &burn::tensor::Device::flex()));
        let Value::Object(mut keys) = config else {
            panic!("a table")
        };
        leave_out(&mut keys, 1, vec!["h.1.c_attn".into()], &model.geometry())?;
        Ok(Value::Object(keys))
    }

    #[test]
    fn names_of_linear_layers_become_the_paths_of_those_that_stay() {
        let found = narrowed(json!({"rank": 2, "targets": ["c_attn", "wte"]})).unwrap();
        let expected = json!({"rank": 2, "targets": ["h.1.c_attn", "wte"]});
        assert_eq!(found, expected);
        let default = narrowed(json!({"targets": null})).unwrap();
        assert_eq!(default, json!({"targets": ["h.1.c_attn"]}));
    }

    #[test]
    fn layers_that_are_left_out_already_stay_so() {
        let found = narrowed(json!({"leave_out": [2]})).unwrap();
        assert_eq!(found, json!({"leave_out": [2, 0]}));
        let again = narrowed(json!({"leave_out": [0]})).unwrap();
        assert_eq!(again, json!({"leave_out": [0]}));
        let first = narrowed(json!({"bottleneck": 3})).unwrap();
        assert_eq!(first, json!({"bottleneck": 3, "leave_out": [0]}));
    }
}
