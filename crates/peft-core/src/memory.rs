//! What layers keep from one pass to the next.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use burn::module::ParamId;
use burn::tensor::Tensor;

/// What layers keep between the passes over the same texts, as a cache keeps their keys and values:
/// a layer that looks at more of a text than a pass shows finds the rest here. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory(Rc<RefCell<HashMap<Owner, Tensor<3>>>>);

/// Whose it is: a module, by one of its parameters, and a place in the model.
type Owner = (ParamId, usize);

impl Memory {
    /// An empty memory.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn recall(&self, owner: Owner) -> Option<Tensor<3>> {
        self.0.borrow().get(&owner).cloned()
    }

    pub(crate) fn keep(&self, owner: Owner, value: Tensor<3>) {
        self.0.borrow_mut().insert(owner, value);
    }
}
