//! The trained parameters of an adapted model, as settings of a training run name them.

use burn::module::ParamId;

use crate::exchange::places;
use crate::geometry::{Geometry, Part};
use crate::host::{Adapted, Host};
use crate::state;

/// One trained parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Identity.
    pub id: ParamId,
    /// Its place, see [`exchange`](crate::exchange): the checkpoint's name for one of the base.
    pub name: String,
    /// What it belongs to.
    pub origin: Origin,
    /// How far below the top it lies: 1 in the highest transformer layer, one more than there are
    /// layers in the embeddings, 0 outside both.
    pub distance: usize,
}

/// What a trained parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A classifier's head.
    Head,
    /// The rest of the base.
    Base(Part),
    /// The method.
    New,
}

impl Trained {
    /// Whether this is a bias.
    pub fn is_bias(&self) -> bool {
        let leaf = self.name.rsplit(['.', '/']).next().unwrap_or_default();
        leaf == "bias" || leaf.ends_with("_bias")
    }
}

/// Every trained parameter in the order of the module tree. Call it on a model in training mode.
pub fn trained<H: Host>(adapted: &Adapted<H>) -> Vec<Trained> {
    let geometry = adapted.host.geometry();
    let places = places(adapted);
    let rows = state::parameters(adapted).into_iter();
    rows.filter(|row| row.trainable)
        .map(|row| {
            let place = places.get(&row.id);
            let level = place.and_then(|place| place.level);
            Trained {
                id: row.id,
                origin: origin(&geometry, row.id),
                distance: level.map_or(0, |level| geometry.layers + 1 - level),
                name: place.map_or(row.name, |place| place.name.clone()),
            }
        })
        .collect()
}

/// The names of all parameters, trained or not, in the order of the alphabet.
pub fn parameter_names<H: Host>(adapted: &Adapted<H>) -> Vec<String> {
    let places = places(adapted).into_values();
    let mut names: Vec<_> = places.map(|place| place.name).collect();
    names.sort();
    names
}

fn origin(geometry: &Geometry, id: ParamId) -> Origin {
    match geometry.params.iter().find(|param| param.id == id) {
        Some(param) if param.is_task_head() => Origin::Head,
        Some(param) => Origin::Base(param.part),
        None => Origin::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::ContractHost;
    use crate::geometry::BaseParam;
    use crate::init::Init;
    use crate::method::Method;
    use crate::projection::{Dense, Proj};
    use crate::site::{Role, Site};
    use crate::toy::Toy;
    use burn::tensor::Device;

    /// Trains norms and embeddings, and puts a new layer in place of every down projection.
    #[derive(Debug)]
    struct Mixed;

    impl Method for Mixed {
        fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
            match site.role {
                Role::Down => Proj::new(Dense::new(init.zeros([site.d_in, site.d_out]), None)),
                _ => base,
            }
        }
        fn trains(&self, param: &BaseParam) -> bool {
            matches!(param.part, Part::Norm | Part::Embedding)
        }
        fn parameters(&self, _geometry: &Geometry) -> usize {
            0
        }
    }

    #[test]
    fn parameters_are_told_apart_by_what_they_belong_to_and_how_far_down_they_lie() {
        let mut init = Init::new(0, &Device::flex().autodiff());
        let toy = Toy::build(&mut init);
        let adapted = crate::host::adapt(toy, &Mixed, None, &mut init).unwrap();
        let all = trained(&adapted);
        let find = |name: &str| {
            let found = all.iter().find(|p| p.name == name);
            let found = found.unwrap_or_else(|| panic!("{name} is not among {all:?}"));
            (found.origin, found.distance, found.is_bias())
        };
        assert_eq!(
            find("embedding.weight"),
            (Origin::Base(Part::Embedding), 3, false)
        );
        assert_eq!(
            find("layers.0.norm_1.bias"),
            (Origin::Base(Part::Norm), 2, true)
        );
        assert_eq!(
            find("layers.1.norm_2.weight"),
            (Origin::Base(Part::Norm), 1, false)
        );
        assert_eq!(find("layers.1.mlp.down/weight"), (Origin::New, 1, false));
        assert_eq!(all.len(), 1 + 2 * (4 + 1));
        // Frozen ones have names too.
        let names = parameter_names(&adapted);
        for name in ["layers.0.attn.query.weight", "layers.1.mlp.down/weight"] {
            assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
        }
    }
}
