//! Whether the parts of a composition go together.

mod linear;

use burn::tensor::Device;

use super::{Composition, Joint, Part};
use crate::blend::Weight;
use crate::error::CoreError;
use crate::geometry::{Geometry, TapSite};
use crate::init::Init;
use crate::method::Method;

/// A sort of place that a method may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seam {
    /// Linear layers.
    Linear,
    /// Sublayers and whole layers.
    Sublayer,
    /// Attention cores.
    Attention,
    /// The token embedding.
    Lookup,
    /// Both ends of the body.
    Ends,
    /// Parameters of the base that are trained in place.
    Base,
}

impl Seam {
    const ALL: [Seam; 6] = [
        Seam::Linear,
        Seam::Sublayer,
        Seam::Attention,
        Seam::Lookup,
        Seam::Ends,
        Seam::Base,
    ];

    fn words(self) -> &'static str {
        match self {
            Seam::Linear => "linear layers",
            Seam::Sublayer => "sublayers",
            Seam::Attention => "the attention core",
            Seam::Lookup => "the token embedding",
            Seam::Ends => "the ends of the body",
            Seam::Base => "parameters of the base",
        }
    }
}

/// How many parts of a composition may fill seams of a sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Any number.
    Many,
    /// One at most.
    One,
    /// None: the composition has no meaning there.
    Nobody,
}

/// The sublayers on which any of the parts sits.
pub fn seated<'a>(parts: &[Part], geometry: &'a Geometry) -> Vec<&'a TapSite> {
    let sits = |tap: &&TapSite| {
        let mut parts = parts.iter();
        parts.any(|part| has_tap(part.method(), tap, geometry.width))
    };
    geometry.taps.iter().filter(sits).collect()
}

/// Whether any of the parts fills a seam of this sort.
pub fn any_fills(parts: &[Part], seam: Seam, geometry: &Geometry) -> bool {
    parts
        .iter()
        .any(|part| fills(part.method(), seam, geometry))
}

/// Values are drawn and dropped: what a method does is all that is asked here.
fn probe() -> Init {
    Init::new(0, &Device::flex())
}

fn has_tap(method: &dyn Method, tap: &TapSite, width: usize) -> bool {
    method
        .tap(tap.layer, tap.role, width, &mut probe())
        .is_some()
}

/// More parts than this are none that a person wrote.
const MOST_PARTS: usize = 256;

pub(super) fn parts<C: Composition>(composition: &C, geometry: &Geometry) -> Result<(), CoreError> {
    let parts = Composition::parts(composition);
    if parts.is_empty() {
        return Err(CoreError::bad_value("parts", "empty", "at least one part"));
    }
    if parts.len() > MOST_PARTS {
        let expected = format!("at most {MOST_PARTS}");
        let found = parts.len();
        return Err(CoreError::bad_value("number of parts", found, &expected));
    }
    for (index, part) in parts.iter().enumerate() {
        let method = part.try_method();
        let method = method.ok_or_else(|| {
            let expected = "one made by a registry, which knows the kinds of parts";
            CoreError::bad_value("the composition", "not assembled", expected)
        })?;
        method
            .check(geometry)
            .and_then(|()| leaves_weights_whole(part))
            .and_then(|()| makes_no_copies(part))
            .and_then(|()| changes_no_base(part, geometry))
            .and_then(|()| learns_at_one_rate(part))
            .and_then(|()| starts_without_data(part))
            .map_err(|error| CoreError::part(index, error))?;
    }
    one_storage(parts)?;
    match composition.joint() {
        Joint::InTurn => linear::on_bare_layers(parts, geometry)?,
        Joint::Mixed(weights) => {
            same_offset(parts)?;
            one_weight_each(&weights, parts)?;
        }
        Joint::Apart => same_offset(parts)?,
    }
    Seam::ALL
        .into_iter()
        .try_for_each(|seam| has_room(composition, seam, geometry))
}

/// Refuses a part that decides which part of a weight is frozen.
fn leaves_weights_whole(part: &Part) -> Result<(), CoreError> {
    match part.method().splits() {
        false => Ok(()),
        true => Err(divides_weights(part)),
    }
}

pub(super) fn divides_weights(part: &Part) -> CoreError {
    let expected = "a method that leaves the weight whole, in a composition";
    CoreError::bad_value("kind", part.kind(), expected)
}

/// Refuses a part that needs several copies of every text: the others would be on all of them.
fn makes_no_copies(part: &Part) -> Result<(), CoreError> {
    match part.method().copies() {
        1 => Ok(()),
        _ => {
            let expected =
                "a composition of its own, with others inside it: its parts are kept apart";
            Err(CoreError::bad_value("kind", part.kind(), expected))
        }
    }
}

/// Refuses a trained part that sets rates by places, which the places of other parts may share.
fn learns_at_one_rate(part: &Part) -> Result<(), CoreError> {
    if part.is_frozen() || part.method().rate_factors().is_empty() {
        return Ok(());
    }
    let expected = "a method that learns at one rate, in a composition";
    Err(CoreError::bad_value("kind", part.kind(), expected))
}

/// Refuses a part that is to look at the training data: only a method that stands alone does.
fn starts_without_data(part: &Part) -> Result<(), CoreError> {
    let has_values = part.is_frozen() || part.adapter().is_some();
    if has_values || part.method().looks_at() == 0 {
        return Ok(());
    }
    let expected = "a method that does not start from the data, or an adapter trained before, in a \
                    composition";
    Err(CoreError::bad_value("kind", part.kind(), expected))
}

/// Refuses a part that was trained before and whose values are parameters of the base: the base has
/// others.
fn changes_no_base(part: &Part, geometry: &Geometry) -> Result<(), CoreError> {
    let has_values = part.is_frozen() || part.adapter().is_some();
    let changes = has_values && fills(part.method(), Seam::Base, geometry);
    match changes {
        false => Ok(()),
        true => {
            let expected = "left out: it changes parameters of the base; merge it into the base \
                            and start from that";
            Err(CoreError::bad_value("adapter", part.kind(), expected))
        }
    }
}

fn one_storage(parts: &[Part]) -> Result<(), CoreError> {
    let presets = parts.iter().filter_map(|part| part.method().storage());
    let mut names: Vec<_> = presets.map(|preset| preset.packing()).collect();
    names.dedup();
    match &names[..] {
        [] | [_] => Ok(()),
        _ => {
            let expected = "one storage of the frozen weights for all parts";
            Err(CoreError::bad_value(
                "storage",
                names.join(" and "),
                expected,
            ))
        }
    }
}

fn one_weight_each(weights: &[Weight], parts: &[Part]) -> Result<(), CoreError> {
    let (found, count) = (weights.len(), parts.len());
    match found == count {
        true => Ok(()),
        false => {
            let expected = format!("one for each of the {count} parts");
            Err(CoreError::bad_value("number of weights", found, &expected))
        }
    }
}

fn same_offset(parts: &[Part]) -> Result<(), CoreError> {
    let mut offsets = parts.iter().map(|part| part.method().position_offset());
    let first = offsets.next().unwrap_or(0);
    match offsets.find(|offset| *offset != first) {
        None => Ok(()),
        Some(other) => {
            let expected = format!("{first}, as in the first part");
            Err(CoreError::bad_value("position offset", other, &expected))
        }
    }
}

fn has_room<C: Composition>(
    composition: &C,
    seam: Seam,
    geometry: &Geometry,
) -> Result<(), CoreError> {
    let most = match composition.room(seam) {
        Room::Many => return Ok(()),
        Room::One => 1,
        Room::Nobody => 0,
    };
    let parts = Composition::parts(composition).iter().enumerate();
    let mut fillers = parts.filter(|(_, part)| fills(part.method(), seam, geometry));
    match fillers.nth(most) {
        None => Ok(()),
        Some((index, part)) => {
            let (kind, words) = (<C as Composition>::INFO.kind, seam.words());
            let expected = match most {
                0 => format!("a method that leaves {words} alone in a `{kind}`"),
                _ => format!("left out: only one part of a `{kind}` may change {words}"),
            };
            let error = CoreError::bad_value("kind", part.kind(), &expected);
            Err(CoreError::part(index, error))
        }
    }
}

/// Whether a method fills any seam of this sort.
fn fills(method: &dyn Method, seam: Seam, geometry: &Geometry) -> bool {
    let mut init = probe();
    match seam {
        Seam::Linear => geometry
            .sites
            .iter()
            .any(|site| linear::fills(method, site)),
        Seam::Sublayer => {
            let mut taps = geometry.taps.iter();
            taps.any(|tap| has_tap(method, tap, geometry.width))
        }
        Seam::Attention => {
            (0..geometry.layers).any(|layer| method.attend_in(layer, geometry, &mut init).is_some())
        }
        Seam::Lookup => method.lookup(&geometry.table, &mut init).is_some(),
        Seam::Ends => method.ends(geometry.width, &mut init).is_some(),
        // A head of its own is no parameter of the model yet.
        Seam::Base => {
            method.unties_head(geometry) || geometry.params.iter().any(|param| method.trains(param))
        }
    }
}
