//! The places of an adapted model's parameters, and values in and out of them.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};

use super::Rule;
use crate::attend::AttendSlot;
use crate::ends::EndsSlot;
use crate::error::CoreError;
use crate::geometry::{BaseParam, Geometry, Part};
use crate::host::{Adapted, Host, Surgeon};
use crate::lookup::LookupSlot;
use crate::projection::Proj;
use crate::site::{Role, Site};
use crate::state::{self, Tensors};
use crate::tap::TapSlot;

/// The values at the places the rules name, as the checkpoint lays base parameters out.
///
/// # Errors
/// If a trained parameter lies at a place no rule names: it would be lost.
pub fn collect<H: Host>(adapted: &Adapted<H>, rules: &[Rule]) -> Result<Tensors, CoreError> {
    let places = places(adapted);
    let named = |place: &str| rules.iter().any(|rule| rule.place == place);
    let lost: Vec<_> = state::parameters(adapted)
        .into_iter()
        .filter(|row| row.trainable)
        .filter_map(|row| match places.get(&row.id) {
            Some(place) if named(&place.name) => None,
            Some(place) => Some(format!("`{}` has no name in this format", place.name)),
            None => Some(format!("`{}` has no name in this format", row.name)),
        })
        .collect();
    if !lost.is_empty() {
        return Err(CoreError::Mismatch {
            file: "the adapter".into(),
            problems: lost,
        });
    }
    let mut reader = Reader {
        places: &places,
        rules,
        tensors: Tensors::new(),
    };
    adapted.visit(&mut reader);
    Ok(reader.tensors)
}

/// Puts values into their places. `file` names their source in errors.
///
/// # Errors
/// Lists every place the model does not have, and every value of another shape.
pub fn restore<H: Host>(
    adapted: Adapted<H>,
    tensors: Tensors,
    file: &str,
) -> Result<Adapted<H>, CoreError> {
    let places = places(&adapted);
    let mut writer = Writer {
        places: &places,
        tensors,
        problems: Vec::new(),
    };
    let adapted = adapted.map(&mut writer);
    let Writer {
        tensors,
        mut problems,
        ..
    } = writer;
    problems.extend(
        tensors
            .keys()
            .map(|place| format!("the model has no place `{place}`")),
    );
    if problems.is_empty() {
        return Ok(adapted);
    }
    Err(CoreError::Mismatch {
        file: file.into(),
        problems,
    })
}

/// Where a parameter is.
pub(crate) struct Place {
    pub(crate) name: String,
    /// Whether the checkpoint keeps the transposed matrix.
    transposed: bool,
    /// 0 in the embeddings, 1 in the lowest transformer layer; none outside both.
    pub(crate) level: Option<usize>,
}

/// The place of every parameter that is the method's own or of the base.
pub(crate) fn places<H: Host>(adapted: &Adapted<H>) -> HashMap<ParamId, Place> {
    let geometry = adapted.host.geometry();
    let mut namer = Namer {
        places: HashMap::new(),
        geometry: &geometry,
    };
    if let Some(shared) = &adapted.shared {
        namer.name("shared", None, shared);
    }
    drop(adapted.host.clone().rebuild(&mut namer));
    let mut places = namer.places;
    // Last, because a base layer also lies inside what wraps it.
    places.extend(geometry.params.iter().map(base_place));
    places
}

fn base_place(param: &BaseParam) -> (ParamId, Place) {
    let embedding = (param.part == Part::Embedding).then_some(0);
    let place = Place {
        name: param.name.clone(),
        transposed: param.transposed,
        level: param.layer.map(|layer| layer + 1).or(embedding),
    };
    (param.id, place)
}

struct Namer<'a> {
    places: HashMap<ParamId, Place>,
    geometry: &'a Geometry,
}

impl Namer<'_> {
    fn name<M: Module>(&mut self, at: &str, level: Option<usize>, module: &M) {
        for row in state::parameters(module) {
            let place = Place {
                name: format!("{at}/{}", row.name),
                transposed: false,
                level,
            };
            self.places.insert(row.id, place);
        }
    }
}

impl Surgeon for Namer<'_> {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        self.name(&site.path, Some(site.layer + 1), &base);
        base
    }
    fn tap(&mut self, layer: usize, role: Role, old: Option<TapSlot>) -> Option<TapSlot> {
        if let (Some(tap), Some(path)) = (&old, self.geometry.tap_path(layer, role)) {
            self.name(path, Some(layer + 1), tap);
        }
        old
    }
    fn attend(&mut self, layer: usize, old: Option<AttendSlot>) -> Option<AttendSlot> {
        if let Some(attend) = &old {
            let at = format!("layer.{layer}.attention");
            self.name(&at, Some(layer + 1), attend);
        }
        old
    }
    fn ends(&mut self, old: Option<EndsSlot>) -> Option<EndsSlot> {
        if let Some(ends) = &old {
            self.name("ends", None, ends);
        }
        old
    }
    fn lookup(&mut self, old: Option<LookupSlot>) -> Option<LookupSlot> {
        if let Some(lookup) = &old {
            self.name(&self.geometry.table.path, Some(0), lookup);
        }
        old
    }
}

struct Reader<'a> {
    places: &'a HashMap<ParamId, Place>,
    rules: &'a [Rule],
    tensors: Tensors,
}

impl ModuleVisitor for Reader<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(place) = self.places.get(&param.id) else {
            return;
        };
        if !self.rules.iter().any(|rule| rule.place == place.name) {
            return;
        }
        let value = match place.transposed {
            true => param.val().swap_dims(0, 1),
            false => param.val(),
        };
        self.tensors.insert(place.name.clone(), value.into_data());
    }
}

struct Writer<'a> {
    places: &'a HashMap<ParamId, Place>,
    tensors: Tensors,
    problems: Vec<String>,
}

impl ModuleMapper for Writer<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(place) = self.places.get(&param.id) else {
            return param;
        };
        let Some(data) = self.tensors.remove(&place.name) else {
            return param;
        };
        let mut shape = param.lazy_shape().to_vec();
        if place.transposed {
            shape.reverse();
        }
        if let Some(problem) = misfit(&place.name, &data, &shape) {
            self.problems.push(problem);
            return param;
        }
        param.map(|old| {
            let tracked = old.is_require_grad();
            let value = Tensor::<D>::from_data(data, &old.device());
            let value = match place.transposed {
                // Own the transposed values: a view would be walked with strides in every product.
                true => Tensor::from_data(value.swap_dims(0, 1).into_data(), &old.device()),
                false => value,
            };
            value.set_require_grad(tracked)
        })
    }
}

/// What keeps a value from going to its place.
fn misfit(name: &str, data: &TensorData, shape: &[usize]) -> Option<String> {
    let found = data.shape().to_vec();
    if found != shape {
        return Some(format!(
            "`{name}` has shape {found:?}, the model wants {shape:?}"
        ));
    }
    if !data.dtype().is_float() {
        return Some(format!(
            "`{name}` holds {:?}, expected floating-point numbers",
            data.dtype()
        ));
    }
    let finite = data.iter::<f32>().all(|value| value.is_finite());
    (!finite).then(|| format!("`{name}` holds a number that is not finite"))
}
