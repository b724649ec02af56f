//! An adapter made for several tasks, as one for a mixture of them.

use anyhow::{Context, Result};
use peft_core::Host;

use super::Fitted;
use crate::registry::Registry;

/// The key of methods that can mix what they have for each of their tasks.
const INTERPOLATE: &str = "interpolate";

impl Fitted {
    /// The adapter with these weights on its tasks, whatever task a text is of. Its model, which was
    /// made without them, is good to be written and not to compute with.
    ///
    /// # Errors
    /// If the method mixes no tasks, or not with these weights.
    pub fn interpolated(mut self, weights: &[f64], registry: &Registry) -> Result<Self> {
        let kind = &self.card.kind;
        let cannot = || format!("`{kind}` cannot mix its tasks with these weights");
        let keys = self.card.config.as_object_mut().with_context(cannot)?;
        keys.insert(INTERPOLATE.into(), weights.into());
        let method = registry.parse(kind, &self.card.config);
        let method = method.with_context(cannot)?;
        let checked = method.check(&self.model.host.geometry());
        checked.with_context(cannot)?;
        self.method = method;
        Ok(self)
    }
}
