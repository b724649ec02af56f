//! What a PEFT method is: a configuration that fills some of a model's seams.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use burn::tensor::Tensor;

use crate::attend::AttendSlot;
use crate::compose::{Assembler, Part};
use crate::ends::EndsSlot;
use crate::error::CoreError;
use crate::exchange::{Fields, Foreign};
use crate::geometry::{BaseParam, Geometry, Table};
use crate::init::Init;
use crate::look::{Looked, Preview};
use crate::lookup::LookupSlot;
use crate::pass::SharedSlot;
use crate::projection::{Dense, Proj};
use crate::regulate::Regulator;
use crate::site::{Role, Site};
use crate::tap::TapSlot;

/// A PEFT method, ready to be put into a model. Every hook has a default that leaves the model
/// alone, so a method states only what it does.
///
/// The new parameters that the hooks create are trained; of the base only what [`Method::trains`]
/// names. The task head of a classifier is trained under every method and not the method's matter.
pub trait Method: std::fmt::Debug + Send + Sync {
    /// Refuses configurations that make no sense or find no place in this model.
    ///
    /// # Errors
    /// Names the key, what was found and what is allowed.
    fn check(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        Ok(())
    }

    /// The methods it is made of; none for a method that stands for itself.
    fn parts(&self) -> &[Part] {
        &[]
    }

    /// The storage of the frozen weights that this method prescribes, if it does.
    fn storage(&self) -> Option<Box<dyn Storage>> {
        None
    }

    /// How many batches of the training data it looks at before it is put into the model; a method
    /// that was not given them must work all the same, for its adapters are loaded without data.
    fn looks_at(&self) -> usize {
        0
    }

    /// The method after a look at the training data; asked for where [`Method::looks_at`] is not 0.
    /// What it found that decides the shape of its modules goes into its configuration.
    ///
    /// # Errors
    /// If the data are too few to start from, or nothing to start from is found in them.
    fn look(
        &self,
        _geometry: &Geometry,
        _preview: &dyn Preview,
    ) -> Result<Option<Looked>, CoreError> {
        Ok(None)
    }

    /// The method for a model into which values are put right after: without the search for a start
    /// that no value depends on. None where it searches for nothing.
    fn without_start(&self) -> Option<Arc<dyn Method>> {
        None
    }

    /// State that the layers share; they reach it through the [`Pass`](crate::pass::Pass).
    fn shared(&self, _geometry: &Geometry, _init: &mut Init) -> Option<SharedSlot> {
        None
    }

    /// What stands in place of a linear layer, for a method that decides which part of its weight is
    /// frozen. It gets the layer as it was loaded, and `store` to pack what it leaves frozen as the
    /// model's weights are. None where the method goes over the whole weight, however it is stored:
    /// that is [`Method::project`].
    ///
    /// # Errors
    /// If the weight cannot be divided, or what is left of it cannot be packed.
    fn split(
        &self,
        _site: &Site,
        _base: &Proj,
        _store: Store<'_>,
    ) -> Result<Option<Proj>, CoreError> {
        Ok(None)
    }

    /// Whether [`Method::split`] divides any weight, which then is the matter of this method alone.
    fn splits(&self) -> bool {
        false
    }

    /// What stands in place of a linear layer.
    fn project(&self, _site: &Site, base: Proj, _init: &mut Init) -> Proj {
        base
    }

    /// Whether the linear layers it stands on must be the base's own: it takes from their weights once
    /// what holds only while these stay as they are, or lets rows through them that are no tokens.
    fn needs_bare_layers(&self) -> bool {
        false
    }

    /// What sits on a sublayer of this width.
    fn tap(&self, _layer: usize, _role: Role, _width: usize, _init: &mut Init) -> Option<TapSlot> {
        None
    }

    /// What replaces a layer's attention core; `kv_width` is the width of its keys.
    fn attend(&self, _layer: usize, _kv_width: usize, _init: &mut Init) -> Option<AttendSlot> {
        None
    }

    /// What replaces a layer's attention core, for a method that must know the model's shape.
    fn attend_in(&self, layer: usize, geometry: &Geometry, init: &mut Init) -> Option<AttendSlot> {
        self.attend(layer, geometry.kv_width, init)
    }

    /// What sits on the token embedding.
    fn lookup(&self, _table: &Table, _init: &mut Init) -> Option<LookupSlot> {
        None
    }

    /// What sits on the token embedding, for a method that starts from rows of the base's table,
    /// `[rows, width]`.
    fn lookup_from(&self, table: &Table, _rows: &Tensor<2>, init: &mut Init) -> Option<LookupSlot> {
        self.lookup(table, init)
    }

    /// What sits on both ends of a body of this width.
    fn ends(&self, _width: usize, _init: &mut Init) -> Option<EndsSlot> {
        None
    }

    /// By how much the positions of the tokens are moved up: a prefix that takes positions.
    fn position_offset(&self) -> usize {
        0
    }

    /// The virtual tokens that every text gets, for predictions of work and memory.
    fn virtual_tokens(&self) -> VirtualTokens {
        VirtualTokens {
            body: self.position_offset(),
            keys: 0,
        }
    }

    /// Whether every row of a batch must be one text: the method counts places from the ends of a
    /// text, puts virtual tokens before it, copies it or draws random numbers for it. Texts are then
    /// not packed into one row.
    fn needs_own_rows(&self) -> bool {
        false
    }

    /// How many copies of every text go through the layers, for methods kept apart in one model: a
    /// host repeats the rows of a batch where it embeds them, copy behind copy, and answers with the
    /// mean of the copies' logits. In training every copy has a loss of its own, and they are added.
    fn copies(&self) -> usize {
        1
    }

    /// For how many tasks the method is made, where it goes by the task of a row; tasks are counted
    /// from 0.
    fn tasks(&self) -> Option<usize> {
        None
    }

    /// Whether this parameter of the base is trained.
    fn trains(&self, _param: &BaseParam) -> bool {
        false
    }

    /// Whether a head that shares the embedding table gets a copy of its own.
    fn unties_head(&self, _geometry: &Geometry) -> bool {
        false
    }

    /// Factors on the learning rate of parameters the method trains, by what their places (see
    /// [`exchange`](crate::exchange)) end in: `("/b", 16.0)`.
    fn rate_factors(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// The factor on the learning rate of the parameter at a place.
    fn rate_factor(&self, place: &str) -> f64 {
        let factors = self.rate_factors().into_iter();
        let own = factors.filter(|(end, _)| place.ends_with(end));
        own.map(|(_, factor)| factor).product()
    }

    /// What acts after every optimizer step of a run of so many; `init` is for what starts again
    /// on the way, and is on the device of the run.
    ///
    /// # Errors
    /// If the configuration does not go with so many steps.
    fn regulator(
        &self,
        _steps: usize,
        _init: Init,
    ) -> Result<Option<Box<dyn Regulator>>, CoreError> {
        Ok(None)
    }

    /// Closed form of the number of parameters the method trains, task head aside.
    fn parameters(&self, geometry: &Geometry) -> usize;

    /// The size that sweeps vary, in the words of [`MethodInfo::size_key`].
    fn size(&self) -> Option<u64> {
        None
    }

    /// How HF PEFT keeps this method: every field of `adapter_config.json` that is not common to
    /// all methods, and the tensors. None where PEFT has no such method.
    fn peft(&self, _geometry: &Geometry) -> Option<Foreign> {
        None
    }

    /// How AdapterHub keeps this method under an adapter name: its `config` and the tensors. None
    /// where AdapterHub has no such method.
    fn adapter_hub(&self, _geometry: &Geometry, _name: &str) -> Option<Foreign> {
        None
    }
}

/// Packs the frozen part of a layer as the model's weights are, or leaves it dense where they are.
pub type Store<'a> = &'a dyn Fn(Dense) -> Result<Proj, CoreError>;

/// Virtual tokens of a method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualTokens {
    /// Those that go through all layers before the text.
    pub body: usize,
    /// Those that stand only among the keys and values of every layer.
    pub keys: usize,
}

/// A method's configuration as a study file spells it.
pub trait MethodConfig: Method + Serialize + DeserializeOwned + Clone + 'static {
    /// What the registry says of it.
    const INFO: MethodInfo;

    /// Raised by one where the method is changed so that it trains to other results, another start for
    /// example: records of before are not taken for those of the method as it is then.
    const REVISION: u32 = 0;

    /// Configurations the contract suite runs, at least one; small sizes.
    fn examples() -> Vec<Self>;

    /// Gives the parts of a method that is made of others their methods, which its configuration
    /// names by their kinds.
    ///
    /// # Errors
    /// If a part is of no kind, or its configuration is not accepted; the error names the part.
    fn assemble(self, _assembler: &dyn Assembler) -> Result<Self, CoreError> {
        Ok(self)
    }

    /// Reads the fields of an HF PEFT configuration; none where they describe another method.
    ///
    /// # Errors
    /// If a field has a value this method cannot follow.
    fn from_peft(_fields: &mut Fields, _geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        Ok(None)
    }

    /// Reads an AdapterHub `config`; none where it describes another method.
    ///
    /// # Errors
    /// If a field has a value this method cannot follow.
    fn from_adapter_hub(
        _fields: &mut Fields,
        _geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        Ok(None)
    }
}

/// Where a model starts right after a method was put into it.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// It computes what the base computes, up to rounding.
    Identity,
    /// It is within this relative distance of the base (near-identity initialisation).
    Near(f64),
    /// It starts elsewhere by design, for this reason.
    Elsewhere(&'static str),
}

/// A line of the method table.
#[derive(Clone, Copy, Debug)]
pub struct MethodInfo {
    /// The `kind` of study files.
    pub kind: &'static str,
    /// Name for plots and tables.
    pub name: &'static str,
    /// Authors, year and title, or arXiv number.
    pub paper: &'static str,
    /// Which seams it fills, in words.
    pub seam: &'static str,
    /// Formula of the trained parameters.
    pub formula: &'static str,
    /// Where the adapted model starts.
    pub start: Start,
    /// Whether it can be merged into plain linear layers.
    pub mergeable: bool,
    /// The key of the configuration that sweeps vary: `rank`, `bottleneck`.
    pub size_key: Option<&'static str>,
}

/// How frozen weights are stored: an axis of its own, independent of the method.
pub trait Storage: std::fmt::Debug + Send + Sync {
    /// Name for tables: `nf4`, `nf4+dq`.
    fn name(&self) -> String;

    /// The same in full, so that equal words mean equal storage: `nf4+dq in blocks of 64`; see
    /// [`Projection::packing`](crate::projection::Projection::packing).
    fn packing(&self) -> String {
        self.name()
    }

    /// Packs the weight of a linear layer.
    ///
    /// # Errors
    /// If the weight cannot be stored this way.
    fn pack(&self, site: &Site, dense: Dense) -> Result<Proj, CoreError>;

    /// Bytes of a packed weight of these dimensions, `(d_in, d_out)`.
    fn bytes(&self, dims: (usize, usize)) -> usize;
}
