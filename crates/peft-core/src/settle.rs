//! Models without what only training needs.
//!
//! Some methods train a network that makes their parameters, and keep in the end what it made. Such
//! a slot can settle into its final form, which is also what other programs keep.
//!
//! Others compute something from their parameters in each pass: a norm, an inverse. In a model that is
//! not trained on, a linear layer can do so once.

use crate::attend::AttendSlot;
use crate::host::{Adapted, Host, Surgeon};
use crate::lookup::LookupSlot;
use crate::pass::Pass;
use crate::projection::Proj;
use crate::site::Site;

impl<H: Host> Adapted<H> {
    /// The model without what only training needs: a slot that can settle takes its final form and
    /// stands on its own, so that shared state is dropped with it.
    #[must_use]
    pub fn settled(self) -> Self {
        let mut settler = Settler {
            pass: Pass::with_shared(self.shared.as_ref()),
            settled: false,
        };
        let host = self.host.rebuild(&mut settler);
        let Settler { settled, .. } = settler;
        Self {
            host,
            shared: self.shared.filter(|_| !settled),
            position_offset: self.position_offset,
            copies: self.copies,
        }
    }
}

impl<H: Host> Adapted<H> {
    /// The model with what its linear layers compute from their parameters alone computed once. It is
    /// for use, not for training or for values that are yet to be put in.
    #[must_use]
    pub fn steady(self) -> Self {
        let mut steadier = Steadier(Pass::with_shared(self.shared.as_ref()));
        let host = self.host.rebuild(&mut steadier);
        Self { host, ..self }
    }
}

struct Steadier<'a>(Pass<'a>);

impl Surgeon for Steadier<'_> {
    fn projection(&mut self, _site: &Site, old: Proj) -> Proj {
        old.steady(&self.0).unwrap_or(old)
    }
}

struct Settler<'a> {
    pass: Pass<'a>,
    settled: bool,
}

impl Surgeon for Settler<'_> {
    fn projection(&mut self, _site: &Site, old: Proj) -> Proj {
        let new = old.settled(&self.pass);
        self.settled |= new.is_some();
        new.unwrap_or(old)
    }
    fn attend(&mut self, _layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        let new = old.as_ref().and_then(|slot| slot.settled(&self.pass));
        self.settled |= new.is_some();
        new.or(old)
    }
    fn lookup(&mut self, old: Option<LookupSlot>) -> Option<LookupSlot> {
        let new = old.as_ref().and_then(|slot| slot.settled(&self.pass));
        self.settled |= new.is_some();
        new.or(old)
    }
}
