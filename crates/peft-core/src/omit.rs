//! A model without what a method put into some of its layers.

use std::collections::BTreeSet;

use crate::attend::AttendSlot;
use crate::host::{Adapted, Host, Surgeon};
use crate::projection::Proj;
use crate::site::{Role, Site};
use crate::tap::TapSlot;

impl<H: Host> Adapted<H> {
    /// The same model without what its method put into these layers: their linear layers, sublayers
    /// and attention are those of the base again. Parameters of the base stay as they were trained,
    /// and what sits on the embedding or on both ends stays too.
    ///
    /// The parameters are shared, not copied: a loss of the result has gradients of this model's.
    #[must_use]
    pub fn without_layers(&self, layers: &BTreeSet<usize>) -> Self {
        Self {
            host: self.host.clone().rebuild(&mut Remover(layers)),
            ..self.clone()
        }
    }
}

struct Remover<'a>(&'a BTreeSet<usize>);

impl Remover<'_> {
    fn kept<S>(&self, layer: usize, old: Option<S>) -> Option<S> {
        old.filter(|_| !self.0.contains(&layer))
    }
}

impl Surgeon for Remover<'_> {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        let bare = self.0.contains(&site.layer).then(|| base.bare()).flatten();
        bare.unwrap_or(base)
    }
    fn tap(&mut self, layer: usize, _role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        self.kept(layer, old)
    }
    fn attend(&mut self, layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        self.kept(layer, old)
    }
}
