//! A foreign configuration read field by field, so that none is skipped without a word.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::CoreError;
use crate::geometry::Geometry;

/// The fields of a configuration file. What is read is taken out; [`Fields::finish`] refuses what
/// is left and not off.
#[derive(Clone, Debug)]
pub struct Fields {
    file: String,
    values: Map<String, Value>,
}

impl Fields {
    /// The fields of a file.
    pub fn new(file: impl Into<String>, values: Map<String, Value>) -> Self {
        let file = file.into();
        Self { file, values }
    }

    /// The fields with one more, in place of any of its name.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.values.insert(key.into(), value);
        self
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// A field as it stands, null where there is none.
    pub fn peek(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    /// Takes a field; none where it is missing or null.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, CoreError> {
        match self.values.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match serde_json::from_value(value.clone()) {
                Ok(parsed) => Ok(Some(parsed)),
                Err(reason) => Err(self.unsupported(key, &value, &reason.to_string())),
            },
        }
    }

    /// Takes a field that must be there.
    ///
    /// # Errors
    /// If it is missing, null, or of another type.
    pub fn require<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, CoreError> {
        let value = self.take(key)?;
        value.ok_or_else(|| self.unsupported(key, &Value::Null, "a value"))
    }

    /// Takes a field that may be missing or null, and otherwise must have one of these values.
    ///
    /// # Errors
    /// If it has another.
    pub fn allow(&mut self, key: &str, values: &[Value]) -> Result<(), CoreError> {
        let found = self.values.remove(key).unwrap_or(Value::Null);
        if found.is_null() || values.iter().any(|value| same(value, &found)) {
            return Ok(());
        }
        let expected: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
        Err(self.unsupported(key, &found, &expected.join(" or ")))
    }

    /// Leaves fields out that say nothing of what is computed.
    pub fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.values.remove(*key);
        }
    }

    /// The error that a field cannot be read.
    pub fn unsupported(&self, key: &str, found: &Value, expected: &str) -> CoreError {
        CoreError::bad_value(&format!("{key}` of `{}", self.file), found, expected)
    }

    /// Ends the reading: a field that is left must be off (null, false, zero or empty), for it
    /// would change what is computed.
    ///
    /// # Errors
    /// Names the first field that is not.
    pub fn finish(self) -> Result<(), CoreError> {
        match self.values.iter().find(|(_, value)| !is_off(value)) {
            None => Ok(()),
            Some((key, value)) => {
                Err(self.unsupported(key, value, "left out: this version does not support it"))
            }
        }
    }

    /// Takes `modules_to_save` but for the task head, which is trained under every method, and for
    /// names the base has no module of (PEFT adds `score` where there is only `classifier`).
    ///
    /// # Errors
    /// If it is no list of names.
    pub fn modules_to_save(&mut self, geometry: &Geometry) -> Result<Vec<String>, CoreError> {
        let mut names: Vec<String> = self.take("modules_to_save")?.unwrap_or_default();
        names.sort();
        names.dedup();
        names.retain(|name| geometry.has_module(name));
        Ok(names)
    }
}

/// 4 and 4.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: Value) -> Fields {
        let Value::Object(values) = json else {
            panic!("a table")
        };
        Fields::new("adapter_config.json", values)
    }

    #[test]
    fn a_field_that_is_on_and_was_not_read_is_named() {
        let mut fields = fields(serde_json::json!({
            "r": 4, "use_qalora": true, "eva_config": null, "loftq_config": {}, "bias": "none"
        }));
        assert_eq!(fields.take::<usize>("r").unwrap(), Some(4));
        let error = fields.finish().unwrap_err().to_string();
        assert!(
            error.contains("`use_qalora` of `adapter_config.json` is true"),
            "{error}"
        );
    }

    #[test]
    fn a_field_of_another_type_is_named_with_its_value() {
        let error = fields(serde_json::json!({"r": "many"}))
            .take::<usize>("r")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`r` of") && error.contains("many"),
            "{error}"
        );
    }

    #[test]
    fn a_value_outside_the_allowed_ones_is_an_error() {
        let mut fields = fields(serde_json::json!({"ln_after": true, "scaling": 1.0}));
        assert!(fields.allow("scaling", &[1.into()]).is_ok());
        assert!(fields.allow("ln_after", &[false.into()]).is_err());
    }
}
