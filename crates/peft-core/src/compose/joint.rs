//! How what several parts have at a seam becomes one.

use burn::module::Module;

use super::{Room, Seam, copies, places, seams};
use crate::attend::AttendSlot;
use crate::blend::{self, Weight, Weighted};
use crate::ends::EndsSlot;
use crate::lookup::LookupSlot;
use crate::projection::Proj;
use crate::tap::TapSlot;

/// How what several parts have at a seam becomes one.
#[derive(Clone, Debug)]
pub enum Joint {
    /// Each in turn, on what the one before it gives.
    InTurn,
    /// `base + sum of weight * (part - base)`, a weight for every part.
    Mixed(Vec<Weight>),
    /// Each on its own copy of the texts.
    Apart,
}

impl Joint {
    /// How many of the parts may fill a seam of this sort.
    pub(super) fn room(&self, seam: Seam) -> Room {
        match (self, seam) {
            // An attention core has nothing to give to the next one.
            (Joint::InTurn, Seam::Attention) => Room::One,
            (Joint::InTurn, _) => Room::Many,
            // One set of values serves all parts.
            (Joint::Mixed(_) | Joint::Apart, Seam::Base) => Room::Nobody,
            // A text is copied when its tokens are embedded.
            (Joint::Apart, Seam::Lookup) => Room::Nobody,
            // Virtual tokens are before all places.
            (Joint::Mixed(_), Seam::Lookup) if self.is_by_place() => Room::Nobody,
            (Joint::Mixed(_) | Joint::Apart, _) => Room::Many,
        }
    }

    /// Whether it goes by the place of a token in its row, or by the row.
    pub(super) fn is_by_place(&self) -> bool {
        match self {
            Joint::InTurn => false,
            Joint::Mixed(weights) => weights.iter().any(Weight::is_by_place),
            Joint::Apart => true,
        }
    }

    /// The linear layer that so many parts make of one. `project` gives what the part of a number
    /// makes of a layer: the layer itself where it leaves it alone.
    pub(super) fn linear(
        self,
        base: Proj,
        parts: usize,
        mut project: impl FnMut(usize, Proj) -> Proj,
    ) -> Proj {
        let by_place = self.is_by_place();
        let mut side_by_side = |base: &Proj| {
            let made = (0..parts).map(|index| {
                let projection = project(index, base.clone());
                seams::made_by(&projection, index)
            });
            let made: Vec<_> = made.collect();
            made.iter().any(Option::is_some).then_some(made)
        };
        match self {
            Joint::InTurn => (0..parts).fold(base, |base, index| project(index, base)),
            Joint::Mixed(weights) => match side_by_side(&base) {
                Some(parts) if by_place => Proj::new(places::LinearByPlace {
                    base,
                    count: parts.len(),
                    parts: weighted(weights, parts),
                }),
                Some(parts) => Proj::new(blend::BlendLinear {
                    base,
                    parts: weighted(weights, parts),
                }),
                None => base,
            },
            Joint::Apart => match side_by_side(&base) {
                Some(parts) => Proj::new(copies::LinearApart { base, parts }),
                None => base,
            },
        }
    }

    pub(super) fn taps(self, parts: Vec<Option<TapSlot>>) -> TapSlot {
        match self {
            Joint::InTurn => TapSlot::new(seams::TapsInTurn { parts }),
            Joint::Mixed(weights) => TapSlot::new(blend::BlendTap {
                parts: weighted(weights, parts),
            }),
            Joint::Apart => TapSlot::new(copies::TapsApart { parts }),
        }
    }

    pub(super) fn attends(self, parts: Vec<Option<AttendSlot>>) -> AttendSlot {
        let by_place = self.is_by_place();
        match self {
            Joint::InTurn => AttendSlot::new(seams::OnlyAttend { parts }),
            Joint::Mixed(weights) if by_place => AttendSlot::new(places::AttendByPlace {
                count: parts.len(),
                parts: weighted(weights, parts),
            }),
            Joint::Mixed(weights) => AttendSlot::new(blend::BlendAttend {
                parts: weighted(weights, parts),
            }),
            Joint::Apart => AttendSlot::new(copies::AttendsApart { parts }),
        }
    }

    /// Of parts that there is room for: kept apart they have none.
    pub(super) fn lookups(self, parts: Vec<Option<LookupSlot>>) -> LookupSlot {
        match self {
            Joint::InTurn | Joint::Apart => LookupSlot::new(seams::LookupsInTurn { parts }),
            Joint::Mixed(weights) => LookupSlot::new(blend::BlendLookup {
                parts: weighted(weights, parts),
            }),
        }
    }

    pub(super) fn ends(self, parts: Vec<Option<EndsSlot>>) -> EndsSlot {
        match self {
            Joint::InTurn => EndsSlot::new(seams::EndsInTurn { parts }),
            Joint::Mixed(weights) => EndsSlot::new(blend::BlendEnds {
                parts: weighted(weights, parts),
            }),
            Joint::Apart => EndsSlot::new(copies::EndsApart { parts }),
        }
    }
}

/// What some of the parts have at a seam, with the weights of those parts.
fn weighted<S: Module>(weights: Vec<Weight>, parts: Vec<Option<S>>) -> Vec<Weighted<S>> {
    let numbered = weights.into_iter().zip(parts).enumerate();
    let filled = numbered.filter_map(|(index, (weight, module))| {
        Some(Weighted {
            weight,
            index,
            module: module?,
        })
    });
    filled.collect()
}
