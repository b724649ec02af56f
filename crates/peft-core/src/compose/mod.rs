//! Methods made of other methods: stacks, averages, splits, fusions, methods side by side.
//!
//! A [`Composition`] holds [`Part`]s, methods of any kind. Every seam of the model is filled by what
//! the parts put there, joined as the composition says ([`Joint`]); a part's own checks, counts and
//! shared state stay its own. A part may come from the folder of an adapter trained before: it is
//! frozen then, and the harness brings its values ([`Part::bring`]).

mod check;
mod copies;
mod joint;
mod part;
mod places;
mod seams;
mod trained;

use burn::tensor::Tensor;
use serde::{Serialize, de::DeserializeOwned};

pub use check::{Room, Seam, any_fills, seated};
pub use joint::Joint;
pub use part::{Assembler, Part};
pub use seams::SharedParts;
pub use trained::{Trained, is_of_a_part};

use crate::attend::AttendSlot;
use crate::blend::Weight;
use crate::ends::EndsSlot;
use crate::error::CoreError;
use crate::exchange::{Fields, Foreign};
use crate::geometry::{BaseParam, Geometry, Table};
use crate::init::Init;
use crate::lookup::LookupSlot;
use crate::method::{Method, MethodConfig, MethodInfo, Storage, Store, VirtualTokens};
use crate::pass::SharedSlot;
use crate::projection::Proj;
use crate::regulate::Regulator;
use crate::site::{Role, Site};
use crate::tap::TapSlot;

/// A method made of other methods. Implementing it makes a [`Method`] and a [`MethodConfig`].
pub trait Composition:
    std::fmt::Debug + Clone + Send + Sync + Serialize + DeserializeOwned + 'static
{
    /// What the registry says of it.
    const INFO: MethodInfo;

    /// Configurations the contract suite runs; see [`MethodConfig::examples`].
    fn examples() -> Vec<Self>;

    /// The methods it is made of.
    fn parts(&self) -> &[Part];

    /// The same, to be assembled.
    fn parts_mut(&mut self) -> &mut Vec<Part>;

    /// Turns other keys that name parts into parts, before they are assembled.
    fn spell_out(&mut self) {}

    /// How what several parts have at a seam becomes one.
    fn joint(&self) -> Joint;

    /// How many of the parts may fill a seam of this sort; as many as their joint has a meaning for.
    fn room(&self, seam: Seam) -> Room {
        self.joint().room(seam)
    }

    /// What stands on a sublayer of this width where some parts have taps.
    fn join_taps(&self, taps: Vec<Option<TapSlot>>, _width: usize, _init: &mut Init) -> TapSlot {
        self.joint().taps(taps)
    }

    /// Refuses what makes no sense of the composition's own keys.
    ///
    /// # Errors
    /// Names the key, what was found and what is allowed.
    fn check_own(&self, _geometry: &Geometry) -> Result<(), CoreError> {
        Ok(())
    }

    /// Parameters it trains besides those of its parts.
    fn own_parameters(&self, _geometry: &Geometry) -> usize {
        0
    }

    /// How AdapterHub keeps it besides its parts: the block (`type`, `kwargs`), where it has one its
    /// `config`, and the tensors. None where AdapterHub computes something else.
    fn adapter_hub_block(&self, _geometry: &Geometry, _name: &str) -> Option<Foreign> {
        None
    }

    /// Reads a block of AdapterHub: its `type`, `kwargs` and `config`, and the `parts` that were
    /// read before. None where it is another block.
    ///
    /// # Errors
    /// If a field has a value this composition cannot follow.
    fn from_adapter_hub_block(_fields: &mut Fields) -> Result<Option<Self>, CoreError> {
        Ok(None)
    }
}

/// What every part has at a seam, or none where no part has anything.
fn filled<S>(parts: &[Part], fill: impl FnMut(&Part) -> Option<S>) -> Option<Vec<Option<S>>> {
    let filled: Vec<_> = parts.iter().map(fill).collect();
    filled.iter().any(Option::is_some).then_some(filled)
}

impl<C: Composition> MethodConfig for C {
    const INFO: MethodInfo = <C as Composition>::INFO;

    fn examples() -> Vec<Self> {
        <C as Composition>::examples()
    }

    fn assemble(mut self, assembler: &dyn Assembler) -> Result<Self, CoreError> {
        self.spell_out();
        for (index, part) in self.parts_mut().iter_mut().enumerate() {
            let assembled = std::mem::take(part).assembled(assembler);
            *part = assembled.map_err(|error| CoreError::part(index, error))?;
        }
        Ok(self)
    }

    fn from_adapter_hub(
        fields: &mut Fields,
        _geometry: &Geometry,
    ) -> Result<Option<Self>, CoreError> {
        C::from_adapter_hub_block(fields)
    }
}

impl<C: Composition> Method for C {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        check::parts(self, geometry)?;
        self.check_own(geometry)
    }

    fn parts(&self) -> &[Part] {
        Composition::parts(self)
    }

    fn storage(&self) -> Option<Box<dyn Storage>> {
        let mut presets = Method::parts(self).iter().map(|p| p.method().storage());
        presets.find_map(|preset| preset)
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let parts = filled(Method::parts(self), |part| part.shared(geometry, init))?;
        Some(SharedSlot::new(SharedParts::new(parts)))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        let parts = Method::parts(self);
        self.joint().linear(base, parts.len(), |index, base| {
            parts[index].project(index, site, base, init)
        })
    }

    fn needs_bare_layers(&self) -> bool {
        let mut parts = Method::parts(self).iter();
        parts.any(|part| part.method().needs_bare_layers())
    }

    /// Refused, as by [`Method::check`]: which part of the weight is frozen cannot be the matter of
    /// one part among several.
    fn split(&self, site: &Site, base: &Proj, store: Store<'_>) -> Result<Option<Proj>, CoreError> {
        for (index, part) in Method::parts(self).iter().enumerate() {
            if part.method().split(site, base, store)?.is_some() {
                return Err(CoreError::part(index, check::divides_weights(part)));
            }
        }
        Ok(None)
    }

    fn tap(&self, layer: usize, role: Role, width: usize, init: &mut Init) -> Option<TapSlot> {
        let taps = filled(Method::parts(self), |part| {
            part.tap(layer, role, width, init)
        })?;
        Some(self.join_taps(taps, width, init))
    }

    fn attend_in(&self, layer: usize, geometry: &Geometry, init: &mut Init) -> Option<AttendSlot> {
        let parts = filled(Method::parts(self), |part| {
            part.attend(layer, geometry, init)
        })?;
        Some(self.joint().attends(parts))
    }

    fn lookup(&self, table: &Table, init: &mut Init) -> Option<LookupSlot> {
        join_lookups(self, |part| part.lookup(table, None, init))
    }

    fn lookup_from(&self, table: &Table, rows: &Tensor<2>, init: &mut Init) -> Option<LookupSlot> {
        join_lookups(self, |part| part.lookup(table, Some(rows), init))
    }

    fn ends(&self, width: usize, init: &mut Init) -> Option<EndsSlot> {
        let parts = filled(Method::parts(self), |part| part.ends(width, init))?;
        Some(self.joint().ends(parts))
    }

    fn position_offset(&self) -> usize {
        let parts = Method::parts(self).iter();
        let offsets = parts.map(|part| part.method().position_offset());
        match self.joint() {
            Joint::InTurn => offsets.sum(),
            // All have the same, which is checked.
            Joint::Mixed(_) | Joint::Apart => offsets.max().unwrap_or(0),
        }
    }

    fn virtual_tokens(&self) -> VirtualTokens {
        let parts = Method::parts(self).iter();
        let keys = parts.map(|part| part.method().virtual_tokens().keys);
        VirtualTokens {
            body: self.position_offset(),
            keys: match self.joint() {
                Joint::InTurn | Joint::Mixed(_) => keys.sum(),
                Joint::Apart => keys.max().unwrap_or(0),
            },
        }
    }

    fn copies(&self) -> usize {
        match self.joint() {
            Joint::InTurn | Joint::Mixed(_) => 1,
            Joint::Apart => Method::parts(self).len(),
        }
    }

    fn tasks(&self) -> Option<usize> {
        let parts = Method::parts(self).iter();
        let of_parts = parts.filter_map(|part| part.method().tasks()).min();
        match self.joint() {
            Joint::Mixed(weights) if weights.iter().any(|w| matches!(w, Weight::Task(_))) => {
                Some(of_parts.unwrap_or(usize::MAX).min(weights.len()))
            }
            _ => of_parts,
        }
    }

    fn needs_own_rows(&self) -> bool {
        let mut parts = Method::parts(self).iter();
        self.joint().is_by_place() || parts.any(|part| part.method().needs_own_rows())
    }

    fn trains(&self, param: &BaseParam) -> bool {
        let mut parts = Method::parts(self).iter();
        parts.any(|part| part.method().trains(param))
    }

    fn unties_head(&self, geometry: &Geometry) -> bool {
        let mut parts = Method::parts(self).iter();
        parts.any(|part| part.method().unties_head(geometry))
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        let trained = Method::parts(self).iter().filter(|part| !part.is_frozen());
        // A parameter of the base that several parts train is one parameter still.
        let added = trained.map(|part| {
            let method = part.method();
            method.parameters(geometry) - geometry.count(|p| method.trains(p))
        });
        let of_the_base = geometry.count(|p| self.trains(p));
        added.sum::<usize>() + of_the_base + self.own_parameters(geometry)
    }

    fn regulator(&self, steps: usize, init: Init) -> Result<Option<Box<dyn Regulator>>, CoreError> {
        for (index, part) in Method::parts(self).iter().enumerate() {
            let own = Init::new(0, init.device());
            if !part.is_frozen() && part.method().regulator(steps, own)?.is_some() {
                let expected =
                    "a method that leaves its tensors to the optimizer, in a composition";
                let error = CoreError::bad_value("kind", part.kind(), expected);
                return Err(CoreError::part(index, error));
            }
        }
        Ok(None)
    }

    fn adapter_hub(&self, geometry: &Geometry, name: &str) -> Option<Foreign> {
        self.adapter_hub_block(geometry, name)
    }
}

fn join_lookups<C: Composition>(
    composition: &C,
    fill: impl FnMut(&Part) -> Option<LookupSlot>,
) -> Option<LookupSlot> {
    let parts = filled(Composition::parts(composition), fill)?;
    Some(composition.joint().lookups(parts))
}

#[cfg(test)]
mod tests;
