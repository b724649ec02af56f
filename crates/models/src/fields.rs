//! Typed access to the keys of a `config.json`; every misfit names the key, its value and what is
//! supported.

use std::path::Path;

use peft_core::Activation;
use serde_json::Value;

use crate::error::ModelError;

/// Largest size a configuration may name. Real ones are far below it, and products of two never
/// overflow.
pub(crate) const MOST: usize = 1 << 24;
/// Most layers a configuration may name.
pub(crate) const MOST_LAYERS: usize = 1 << 12;

/// A configuration file, or an object inside of it, being read.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    json: &'a Value,
    file: &'a Path,
    /// Key of the object inside the file.
    inside: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// The keys of a file.
    pub(crate) fn new(json: &'a Value, file: &'a Path) -> Self {
        Self {
            json,
            file,
            inside: None,
        }
    }

    /// The keys of an object inside, if it is there.
    pub(crate) fn object(&self, key: &'a str) -> Result<Option<Self>, ModelError> {
        match &self.json[key] {
            Value::Null => Ok(None),
            json @ Value::Object(_) => Ok(Some(Self {
                json,
                inside: Some(key),
                ..*self
            })),
            _ => Err(self.error(key, "a table of keys and values")),
        }
    }

    /// The names of all keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        let table = self.json.as_object().into_iter().flatten();
        table.map(|(key, _)| key.as_str())
    }

    /// The value of a key, null where it is absent.
    pub(crate) fn value(&self, key: &str) -> &'a Value {
        &self.json[key]
    }

    /// Whether the file names the key, if only as null.
    pub(crate) fn names(&self, key: &str) -> bool {
        self.json.get(key).is_some()
    }

    /// What is wrong with a key.
    pub(crate) fn error(&self, key: &str, expected: &str) -> ModelError {
        let found = match self.value(key) {
            Value::Null => "missing".to_string(),
            value => shortened(value.to_string()),
        };
        let key = match self.inside {
            Some(object) => format!("{object}.{key}"),
            None => key.to_string(),
        };
        ModelError::Config {
            file: self.file.into(),
            key,
            found,
            expected: expected.into(),
        }
    }

    /// A size of at least 1.
    pub(crate) fn count(&self, key: &str) -> Result<usize, ModelError> {
        self.whole(key, 1, MOST)
    }

    /// A number of layers.
    pub(crate) fn layers(&self, key: &str) -> Result<usize, ModelError> {
        self.whole(key, 1, MOST_LAYERS)
    }

    /// A whole number in this range.
    pub(crate) fn whole(&self, key: &str, least: usize, most: usize) -> Result<usize, ModelError> {
        let number = self.value(key).as_u64();
        number
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| self.error(key, &format!("a whole number from {least} to {most}")))
    }

    /// A size of at least 1, or none where the key is absent or null.
    pub(crate) fn optional_count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.value(key) {
            Value::Null => Ok(None),
            _ => self.count(key).map(Some),
        }
    }

    /// A size whose absence stands for `default`; an explicit null is none.
    pub(crate) fn count_or(&self, key: &str, default: usize) -> Result<Option<usize>, ModelError> {
        if self.names(key) {
            self.optional_count(key)
        } else {
            Ok(Some(default))
        }
    }

    /// Yes or no.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            Value::Null => Ok(default),
            Value::Bool(on) => Ok(*on),
            _ => Err(self.error(key, "true or false")),
        }
    }

    /// A finite number above `bound`, or none where the key is absent or null.
    pub(crate) fn above(&self, key: &str, bound: f64) -> Result<Option<f64>, ModelError> {
        match self.value(key) {
            Value::Null => Ok(None),
            value => {
                let number = value.as_f64();
                // As 32-bit floats they must be finite too.
                let fits = |n: &f64| *n > bound && (*n as f32).is_finite();
                let expected = format!("a finite number above {bound}");
                number
                    .filter(fits)
                    .map(Some)
                    .ok_or_else(|| self.error(key, &expected))
            }
        }
    }

    /// What a normalisation adds to its variance.
    pub(crate) fn eps(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        let eps = self.above(key, 0.0)?.unwrap_or(default);
        if eps > 1.0 {
            return Err(self.error(key, "a number above 0 and up to 1"));
        }
        Ok(eps)
    }

    /// A non-linearity.
    pub(crate) fn activation(
        &self,
        key: &str,
        default: Activation,
    ) -> Result<Activation, ModelError> {
        match self.value(key) {
            Value::Null => Ok(default),
            value => serde_json::from_value(value.clone())
                .map_err(|_| self.error(key, "relu, gelu, gelu_new, silu or tanh")),
        }
    }

    /// Refuses a key that names anything but this value, which is also what its absence means.
    pub(crate) fn only(&self, key: &str, supported: &Value) -> Result<(), ModelError> {
        let same = match (self.value(key), supported) {
            (Value::Null, _) => true,
            (Value::Number(found), Value::Number(supported)) => {
                found.as_f64() == supported.as_f64()
            }
            (found, supported) => found == supported,
        };
        if same {
            return Ok(());
        }
        Err(self.error(key, &format!("{supported}, the only one supported")))
    }

    /// Refuses weights that are packed in a way no reader here knows.
    pub(crate) fn known_packing(&self) -> Result<(), ModelError> {
        let config = self.value("quantization_config");
        if config.is_null() || config["quant_method"] == "bitsandbytes" {
            return Ok(());
        }
        Err(self.error(
            "quantization_config",
            "`quant_method` bitsandbytes, or none for weights as plain floats",
        ))
    }
}

/// A value for an error message, whatever was in the file.
fn shortened(mut text: String) -> String {
    const MOST_CHARACTERS: usize = 80;
    if let Some((end, _)) = text.char_indices().nth(MOST_CHARACTERS) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}
