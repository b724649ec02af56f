//! The tensors that belong to one packed weight.

use std::collections::BTreeMap;
use std::fmt::Display;

use burn::tensor::{DType, TensorData};
use peft_core::CoreError;
use peft_core::state::Tensors;

use super::state::KEY;

/// Tensors by their names behind the layer's path.
pub(super) struct Parts<'a> {
    path: &'a str,
    tensors: BTreeMap<String, TensorData>,
}

impl<'a> Parts<'a> {
    /// Takes the tensors of a layer's weight if any of them says that it is packed.
    pub(super) fn take(path: &'a str, tensors: &mut Tensors) -> Option<Self> {
        let prefix = format!("{path}.");
        let own = tensors.range(prefix.clone()..);
        let names = own
            .map_while(|(name, _)| name.strip_prefix(&prefix))
            .filter(|name| {
                *name == "weight"
                    || name.starts_with("weight.")
                    || ["SCB", "weight_format"].contains(name)
            });
        let names: Vec<String> = names.map(String::from).collect();
        let weight = tensors.get(&format!("{path}.weight"));
        let packed = weight.is_some_and(|w| matches!(w.dtype(), DType::U8 | DType::I8))
            || names
                .iter()
                .any(|name| name == "SCB" || name.starts_with(KEY));
        packed.then(|| Self {
            path,
            tensors: names
                .into_iter()
                .filter_map(|name| {
                    let data = tensors.remove(&format!("{prefix}{name}"))?;
                    Some((name, data))
                })
                .collect(),
        })
    }

    /// The names of the tensors behind the layer's path.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether this is a weight in 8 bits, complete or not.
    pub(super) fn eight_bit(&self) -> bool {
        let signed = |weight: &TensorData| weight.dtype() == DType::I8;
        self.has("SCB") || self.tensors.get("weight").is_some_and(signed)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// An error about one of the tensors.
    pub(super) fn error(&self, name: &str, found: impl Display, expected: &str) -> CoreError {
        CoreError::bad_value(&format!("{}.{name}", self.path), found, expected)
    }

    /// So many values of a tensor of this type, whatever its shape.
    fn values<E: burn::tensor::Element>(
        &mut self,
        name: &str,
        count: Option<usize>,
    ) -> Result<Vec<E>, CoreError> {
        let kind = E::dtype();
        let wanted = match count {
            Some(count) => format!("{count} values of type {kind:?}"),
            None => format!("values of type {kind:?}"),
        };
        let Some(data) = self.tensors.remove(name) else {
            return Err(self.error(name, "missing", &wanted));
        };
        let shape = data.shape().to_vec();
        let found = format!("{:?} of shape {shape:?}", data.dtype());
        let fits = data.dtype() == kind
            && count.is_none_or(|count| shape.iter().product::<usize>() == count);
        match data.try_to_vec() {
            Ok(values) if fits => Ok(values),
            _ => Err(self.error(name, found, &wanted)),
        }
    }

    /// The bytes of a tensor, so many if that is known.
    pub(super) fn bytes(&mut self, name: &str, count: Option<usize>) -> Result<Vec<u8>, CoreError> {
        self.values(name, count)
    }

    /// The signed bytes of a matrix.
    pub(super) fn signed(&mut self, name: &str, shape: [usize; 2]) -> Result<Vec<i8>, CoreError> {
        if let Some(data) = self.tensors.get(name) {
            let found = data.shape().to_vec();
            if found != shape {
                let expected = format!("{shape:?}, PyTorch's [out, in] of this layer");
                return Err(self.error(name, format!("of shape {found:?}"), &expected));
            }
        }
        self.values(name, None)
    }

    /// So many finite numbers.
    pub(super) fn floats(&mut self, name: &str, count: usize) -> Result<Vec<f32>, CoreError> {
        let values: Vec<f32> = self.values(name, Some(count))?;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(place) => {
                let name = format!("{name}[{place}]");
                Err(self.error(&name, values[place], "a finite number"))
            }
        }
    }

    /// A table of values that the codes must stand for.
    pub(super) fn table(&mut self, name: &str, expected: &[f32]) -> Result<(), CoreError> {
        // Other builds of the library computed their tables in another order.
        const SLACK: f32 = 1e-6;
        let found = self.floats(name, expected.len())?;
        let differs = |i: &usize| (found[*i] - expected[*i]).abs() > SLACK;
        match (0..found.len()).find(differs) {
            None => Ok(()),
            Some(i) => {
                let expected = format!("{}, the standard value of this code", expected[i]);
                Err(self.error(&format!("{name}[{i}]"), found[i], &expected))
            }
        }
    }

    /// Refuses tensors that nothing has asked for.
    pub(super) fn finish(&self) -> Result<(), CoreError> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.error(name, "there", "no such tensor beside this weight")),
        }
    }
}
