//! Models without what only training needs.
//!
//! Some methods train a network that makes their parameters, and keep in the end what it made. Such
//! a slot can settle into its final form, which is also what other programs keep. A model that is
//! only read is faster with it: what a slot makes of its parameters would be made again for every
//! token that is generated. Linear layers have a form of their own for that, in which a norm or an
//! inverse is found once.

use burn::module::Module;

use crate::attend::AttendSlot;
use crate::host::{Adapted, Host, Surgeon};
use crate::lookup::LookupSlot;
use crate::pass::Pass;
use crate::projection::Proj;
use crate::site::{Role, Site};
use crate::tap::TapSlot;

impl<H: Host> Adapted<H> {
    /// The model without what only training needs: a slot that can settle takes its final form and
    /// stands on its own, so that shared state is dropped with it.
    #[must_use]
    pub fn settled(self) -> Self {
        let mut settler = Settler::of(&self, Proj::settled);
        let host = self.host.clone().rebuild(&mut settler);
        let settled = settler.settled;
        Self {
            host,
            // Of several parts some may read theirs still.
            shared: self
                .shared
                .filter(|shared| !settled || shared.is_of_parts()),
            position_offset: self.position_offset,
            copies: self.copies,
        }
    }

    /// The model for reading, without gradients: it computes what it does in training, but for
    /// dropout, and what its slots and linear layers make of their parameters alone is made here, once.
    #[must_use]
    pub fn read_only(&self) -> Self {
        let valid = self.valid();
        let mut settler = Settler::of(&valid, Proj::steady);
        let host = valid.host.clone().rebuild(&mut settler);
        Self { host, ..valid }
    }
}

struct Settler<'a> {
    pass: Pass<'a>,
    /// The new form of a linear layer, if it has one.
    linear: fn(&Proj, &Pass<'_>) -> Option<Proj>,
    settled: bool,
}

impl<'a> Settler<'a> {
    fn of<H: Host>(model: &'a Adapted<H>, linear: fn(&Proj, &Pass<'_>) -> Option<Proj>) -> Self {
        Self {
            pass: Pass::with_shared(model.shared.as_ref()),
            linear,
            settled: false,
        }
    }

    /// The new slot, or the old one where it has no other form.
    fn choose<S>(&mut self, old: S, new: Option<S>) -> S {
        self.settled |= new.is_some();
        new.unwrap_or(old)
    }
}

impl Surgeon for Settler<'_> {
    fn projection(&mut self, _site: &Site, old: Proj) -> Proj {
        let new = (self.linear)(&old, &self.pass);
        self.choose(old, new)
    }
    fn tap(&mut self, _layer: usize, _role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        let old = old?;
        let new = old.settled(&self.pass);
        Some(self.choose(old, new))
    }
    fn attend(&mut self, _layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        let old = old?;
        let new = old.settled(&self.pass);
        Some(self.choose(old, new))
    }
    fn lookup(&mut self, old: Option<LookupSlot>) -> Option<LookupSlot> {
        let old = old?;
        let new = old.settled(&self.pass);
        Some(self.choose(old, new))
    }
}
