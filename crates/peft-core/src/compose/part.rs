//! One of the methods that a composition is made of.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Trained;
use super::seams::within;
use crate::attend::AttendSlot;
use crate::ends::EndsSlot;
use crate::error::CoreError;
use crate::geometry::{Geometry, Table};
use crate::init::Init;
use crate::lookup::LookupSlot;
use crate::method::{Method, MethodConfig};
use crate::pass::SharedSlot;
use crate::projection::Proj;
use crate::site::{Role, Site};
use crate::tap::TapSlot;

/// Makes methods of the configurations of parts.
pub trait Assembler {
    /// The method of a kind with this configuration.
    ///
    /// # Errors
    /// If there is no such kind, or it does not accept the configuration.
    fn method(&self, kind: &str, config: &Value) -> Result<Arc<dyn Method>, CoreError>;

    /// What the folder of a trained adapter holds: kind, configuration, and the digest of its files.
    ///
    /// # Errors
    /// If it is no such folder.
    fn trained(&self, folder: &str) -> Result<(String, Value, String), CoreError>;
}

/// One of the methods a composition is made of: `{ kind = "lora", rank = 4 }`, or an adapter that
/// was trained before, `{ adapter = "DIR" }`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Part {
    kind: String,
    config: Map<String, Value>,
    adapter: Option<String>,
    digest: Option<String>,
    frozen: Option<bool>,
    method: Option<Arc<dyn Method>>,
    /// Modules may not be looked at by two threads at once.
    trained: Arc<Mutex<Option<Trained>>>,
}

impl TryFrom<Map<String, Value>> for Part {
    type Error = String;

    fn try_from(mut config: Map<String, Value>) -> Result<Self, String> {
        let mut text = |key: &str| match config.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("`{key}` of a part is {other}, expected a text")),
        };
        let (kind, adapter, digest) = (text("kind")?, text("adapter")?, text("digest")?);
        let frozen = match config.remove("frozen") {
            None => None,
            Some(Value::Bool(frozen)) => Some(frozen),
            Some(other) => return Err(format!("`frozen` of a part is {other}, expected a bool")),
        };
        if kind.is_none() && adapter.is_none() {
            return Err(
                "a part has neither `kind` (a method) nor `adapter` (the folder of a trained one)"
                    .into(),
            );
        }
        if kind.is_none()
            && let Some(key) = config.keys().next()
        {
            return Err(format!(
                "a part has `adapter` and `{key}`: what a trained adapter is, its folder says"
            ));
        }
        Ok(Self {
            kind: kind.unwrap_or_default(),
            config,
            adapter,
            digest,
            frozen,
            method: None,
            trained: Arc::default(),
        })
    }
}

impl From<Part> for Map<String, Value> {
    fn from(part: Part) -> Self {
        let mut map = part.config;
        let mut put = |key: &str, value: Option<Value>| {
            value.and_then(|value| map.insert(key.into(), value));
        };
        put("kind", (!part.kind.is_empty()).then(|| part.kind.into()));
        put("adapter", part.adapter.map(Value::from));
        put("digest", part.digest.map(Value::from));
        put("frozen", part.frozen.map(Value::from));
        map
    }
}

impl Part {
    /// A part of this method.
    ///
    /// # Panics
    /// If the configuration is no table, which every method's is.
    pub fn of<M: MethodConfig>(method: M) -> Self {
        let config = serde_json::to_value(&method).expect("configurations serialise");
        let Value::Object(config) = config else {
            panic!("{config} is no table")
        };
        Self {
            kind: M::INFO.kind.into(),
            config,
            method: Some(Arc::new(method)),
            ..Self::default()
        }
    }

    /// The adapter in this folder, trained before.
    pub fn from_folder(folder: impl Into<String>) -> Self {
        Self {
            adapter: Some(folder.into()),
            ..Self::default()
        }
    }

    /// The part as it is for good: its values are there, and are not trained.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self {
            frozen: Some(true),
            ..self
        }
    }

    /// The part with its method.
    pub(super) fn assembled(mut self, assembler: &dyn Assembler) -> Result<Self, CoreError> {
        if let (true, Some(folder)) = (self.kind.is_empty(), &self.adapter) {
            let (kind, config, digest) = assembler.trained(folder)?;
            let Value::Object(config) = config else {
                let expected = "one with a table as its configuration";
                return Err(CoreError::bad_value("adapter", folder, expected));
            };
            (self.kind, self.config, self.digest) = (kind, config, Some(digest));
        }
        let config = Value::Object(self.config.clone());
        self.method = Some(assembler.method(&self.kind, &config)?);
        Ok(self)
    }

    /// The kind of its method.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its method's configuration.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The folder its values come from, where it was trained before.
    pub fn adapter(&self) -> Option<&str> {
        self.adapter.as_deref()
    }

    /// The digest of that folder's files, when the part was assembled.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Whether its parameters stay as they are.
    pub fn is_frozen(&self) -> bool {
        self.frozen.unwrap_or(self.adapter.is_some())
    }

    /// Its method.
    ///
    /// # Panics
    /// If it was not assembled, which [`Method::check`] of a composition refuses.
    pub fn method(&self) -> &dyn Method {
        let method = self.method.as_deref();
        method.expect("a checked composition is assembled")
    }

    /// Its method, if it was assembled.
    pub(super) fn try_method(&self) -> Option<&dyn Method> {
        self.method.as_deref()
    }

    /// Gives it the values it was trained to.
    pub fn bring(&self, trained: Trained) {
        *self.brought() = Some(trained);
    }

    fn brought(&self) -> MutexGuard<'_, Option<Trained>> {
        // A panic elsewhere leaves the values as they are.
        let lock = self.trained.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot as it was trained, or else a new one; frozen where the part is.
    fn slot<S: Module>(
        &self,
        trained: impl Fn(&Trained) -> Option<S>,
        new: impl FnOnce(&dyn Method) -> Option<S>,
    ) -> Option<S> {
        let slot = match &*self.brought() {
            Some(values) => trained(values),
            None => new(self.method()),
        };
        match self.is_frozen() {
            true => slot.map(Module::no_grad),
            false => slot,
        }
    }

    pub(super) fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        self.slot(|t| t.shared.clone(), |m| m.shared(geometry, init))
    }

    /// What the part makes of a linear layer; the layer itself where it leaves it alone.
    pub(super) fn project(&self, index: usize, site: &Site, base: Proj, init: &mut Init) -> Proj {
        let values = self.brought().as_ref().map(|t| t.projection(site));
        let new = |base, init: &mut Init| self.method().project(site, base, init);
        within(
            index,
            base,
            |base| new(base, init),
            values,
            self.is_frozen(),
        )
    }

    pub(super) fn tap(
        &self,
        layer: usize,
        role: Role,
        width: usize,
        init: &mut Init,
    ) -> Option<TapSlot> {
        let at = (layer, role);
        self.slot(
            |t| t.taps.get(&at).cloned(),
            |m| m.tap(layer, role, width, init),
        )
    }

    pub(super) fn attend(
        &self,
        layer: usize,
        geometry: &Geometry,
        init: &mut Init,
    ) -> Option<AttendSlot> {
        self.slot(
            |t| t.attends.get(&layer).cloned(),
            |m| m.attend_in(layer, geometry, init),
        )
    }

    pub(super) fn lookup(
        &self,
        table: &Table,
        rows: Option<&Tensor<2>>,
        init: &mut Init,
    ) -> Option<LookupSlot> {
        let new = |m: &dyn Method| match rows {
            Some(rows) => m.lookup_from(table, rows, init),
            None => m.lookup(table, init),
        };
        self.slot(|t| t.lookup.clone(), new)
    }

    pub(super) fn ends(&self, width: usize, init: &mut Init) -> Option<EndsSlot> {
        self.slot(|t| t.ends.clone(), |m| m.ends(width, init))
    }
}
