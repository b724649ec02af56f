//! Configurations of the Python libraries, read by the first method that knows them.

use anyhow::{Context, Result};
use peft_core::{Fields, Geometry};
use serde_json::{Map, Value};

use super::{Entry, Read, Reader, Registry};

/// A method as a part of another: its configuration with its kind.
pub(crate) fn part(kind: String, config: &Value) -> Value {
    let mut part = config.as_object().cloned().unwrap_or_default();
    part.insert("kind".into(), kind.into());
    Value::Object(part)
}

impl Registry {
    /// The method that an HF PEFT configuration describes.
    ///
    /// # Errors
    /// If no method here is of its `peft_type`, or a field that changes what is computed is not
    /// supported; the error names it.
    pub fn from_peft(
        &self,
        fields: Fields,
        geometry: &Geometry,
        harmless: &[&str],
    ) -> Result<Read> {
        let found = fields.peek("peft_type").to_string();
        let read = self.first(|entry| entry.from_peft, fields, geometry, harmless)?;
        read.with_context(|| format!("`peft_type` is {found}, which no method here reads"))
    }

    /// The method that an AdapterHub `config` describes.
    ///
    /// # Errors
    /// If no method here fits it, or a field that changes what is computed is not supported.
    pub fn from_adapter_hub(
        &self,
        fields: Fields,
        geometry: &Geometry,
        harmless: &[&str],
    ) -> Result<Read> {
        let shown = |key| format!("`{key}` {}", fields.peek(key));
        let found = [
            "architecture",
            "mh_adapter",
            "output_adapter",
            "is_parallel",
            "phm_layer",
        ];
        let found = found.map(shown).join(", ");
        let fields = self.with_parts(fields, geometry, harmless)?;
        let read = self.first(|entry| entry.from_adapter_hub, fields, geometry, harmless)?;
        read.with_context(|| format!("no method here is an adapter with {found}"))
    }

    /// A `union` with its configurations read, as `parts`; any other configuration as it is.
    fn with_parts(
        &self,
        mut fields: Fields,
        geometry: &Geometry,
        harmless: &[&str],
    ) -> Result<Fields> {
        if fields.peek("architecture") != "union" {
            return Ok(fields);
        }
        let configs: Vec<Map<String, Value>> = fields.require("configs")?;
        let mut parts = Vec::new();
        for (index, config) in configs.into_iter().enumerate() {
            let file = format!("{}, configs[{index}]", fields.file());
            let own = Fields::new(file, config);
            let (kind, config, _) = self.from_adapter_hub(own, geometry, harmless)?;
            parts.push(part(kind, &config));
        }
        Ok(fields.with("parts", Value::Array(parts)))
    }

    /// What the first method that knows the configuration reads in it.
    fn first(
        &self,
        reader: fn(&Entry) -> Reader,
        fields: Fields,
        geometry: &Geometry,
        harmless: &[&str],
    ) -> Result<Option<Read>> {
        for entry in &self.0 {
            let mut fields = fields.clone();
            if let Some(read) = reader(entry)(&mut fields, geometry, self)? {
                fields.ignore(harmless);
                fields.finish()?;
                return Ok(Some(read));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use models::Model;
    use peft_core::{Host, Init};

    use super::*;
    use crate::testing;

    fn shape(build: fn(&mut Init) -> Model) -> Geometry {
        build(&mut Init::new(0, &Device::flex())).geometry()
    }

    #[test]
    fn a_union_of_adapterhub_is_the_method_whose_parts_it_holds() {
        let registry = Registry::builtin();
        let (bert, gpt2) = (shape(testing::bert), shape(testing::gpt2));
        let unipelt = registry.parse("unipelt", &serde_json::json!({})).unwrap();
        assert!(
            unipelt.adapter_hub(&gpt2, "x").is_none(),
            "gates look ahead there"
        );
        let union = unipelt.adapter_hub(&bert, "x").unwrap().fields;
        let read = |change: &dyn Fn(&mut Vec<Value>), geometry: &Geometry| {
            let mut union = union.clone();
            change(union["configs"].as_array_mut().unwrap());
            let fields = Fields::new("config.json", union);
            let read = registry.from_adapter_hub(fields, geometry, &["architecture"]);
            read.map(|(kind, ..)| kind).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(read(&|_| (), &bert).unwrap(), "unipelt");
        assert_eq!(read(&|parts| parts.reverse(), &bert).unwrap(), "unipelt");
        let error = read(&|_| (), &gpt2).unwrap_err();
        assert!(
            error.contains("configs[0]") && error.contains("use_gating"),
            "{error}"
        );
        let ungated = |parts: &mut Vec<Value>| parts[1]["use_gating"] = false.into();
        let error = read(&ungated, &bert).unwrap_err();
        assert!(
            error.contains("no method here is an adapter with"),
            "{error}"
        );
        let split = |parts: &mut Vec<Value>| parts[0]["shared_gating"] = false.into();
        let error = read(&split, &bert).unwrap_err();
        assert!(
            error.contains("`shared_gating` of `config.json, configs[0]` is false"),
            "{error}"
        );
        let error = read(&|parts| parts.clear(), &bert).unwrap_err();
        assert!(error.contains("no method here"), "{error}");
    }
}
