//! The base model that adapters are put into.

use anyhow::{Result, ensure};
use burn::module::Module;
use models::Model;
use peft_core::{Adapted, Init, Method, adapt, divides, pack};

use crate::storage::StorageSpec;

/// A base model as adapters find it: as it was read, or packed once for all of them. A method that
/// divides weights before they are packed gets those that were read.
pub struct Base {
    model: Model,
    /// The model as it was read, where that is another one.
    read: Option<Model>,
    storage: StorageSpec,
}

impl Base {
    /// The model as it was read.
    pub fn new(model: Model) -> Self {
        Self {
            model,
            read: None,
            storage: StorageSpec::F32,
        }
    }

    /// The model with its weights stored in this way.
    ///
    /// # Errors
    /// If a weight cannot be packed, or is packed another way already.
    pub fn stored(model: Model, storage: &StorageSpec) -> Result<Self> {
        let Some(packing) = storage.build() else {
            return Ok(Self::new(model));
        };
        Ok(Self {
            // Clones share their tensors: what is not packed is there once.
            model: pack(model.clone().no_grad(), packing)?,
            read: Some(model),
            storage: storage.clone(),
        })
    }

    /// The model as most adapters find it.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How it is stored, but for what the folder of the model has packed itself.
    pub fn storage(&self) -> &StorageSpec {
        &self.storage
    }

    /// Lets go of what was packed; methods that divide weights are refused from then on.
    pub(crate) fn forget_read(&mut self) {
        self.read = None;
    }

    /// Puts a method into the model; `own` is how the adapter says that its base is stored. Gives
    /// how it is stored then, too.
    ///
    /// # Errors
    /// If the model is stored in another way, or as [`adapt`].
    pub(super) fn adapt(
        &self,
        method: &dyn Method,
        own: &StorageSpec,
        init: &mut Init,
    ) -> Result<(Adapted<Model>, StorageSpec)> {
        let storage = match own {
            StorageSpec::F32 => &self.storage,
            own => own,
        };
        let model = match &self.read {
            Some(read) if divides(&self.model, method) => {
                self.check_same(method, own)?;
                read
            }
            _ => &self.model,
        };
        let adapted = adapt(model.clone(), method, storage.build(), init)?;
        Ok((adapted, storage.clone()))
    }

    /// Refuses a method whose base is stored in another way than this one. Where the base is packed
    /// before, packing it again is what fails.
    fn check_same(&self, method: &dyn Method, own: &StorageSpec) -> Result<()> {
        let preset = method.storage().map(|preset| preset.packing());
        let own = preset.or(own.build().map(|own| own.packing()));
        let asked = self.storage.build().map(|asked| asked.packing());
        if let (Some(own), Some(asked)) = (own, asked) {
            ensure!(
                own == asked,
                "the adapter is for a base in `{own}`, not in `{asked}`, which `--storage` asks for"
            );
        }
        Ok(())
    }
}
