//! What parts put onto linear layers, and whether it may stand on what other parts put there.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::probe;
use crate::compose::Part;
use crate::error::CoreError;
use crate::geometry::Geometry;
use crate::method::Method;
use crate::pass::Pass;
use crate::projection::{Dense, Proj, Projection};
use crate::site::Site;

/// Refuses a part that needs the base's own linear layers where another part changes them: by standing
/// on them before it, or by training their weights.
pub(super) fn on_bare_layers(parts: &[Part], geometry: &Geometry) -> Result<(), CoreError> {
    for (index, part) in parts.iter().enumerate() {
        if !part.method().needs_bare_layers() {
            continue;
        }
        let stands_on = |site: &&Site| fills(part.method(), site);
        let sites: Vec<&Site> = geometry.sites.iter().filter(stands_on).collect();
        let changes = |(at, other): &(usize, &Part)| {
            let mut sites = sites.iter();
            let before = *at < index;
            sites.any(|site| {
                before && fills(other.method(), site)
                    || *at != index && trains_weight(other.method(), site, geometry)
            })
        };
        if let Some((_, other)) = parts.iter().enumerate().find(changes) {
            let other = other.kind();
            let expected = format!(
                "before `{other}`, or on linear layers that `{other}` leaves alone: it stands on \
                 the base's own"
            );
            let error = CoreError::bad_value("kind", part.kind(), &expected);
            return Err(CoreError::part(index, error));
        }
    }
    Ok(())
}

fn trains_weight(method: &dyn Method, site: &Site, geometry: &Geometry) -> bool {
    let mut params = geometry.params.iter();
    let weight = format!("{}.weight", site.path);
    params.any(|param| param.name == weight && method.trains(param))
}

/// Whether a method stands on this linear layer.
pub(super) fn fills(method: &dyn Method, site: &Site) -> bool {
    let blank = Proj::new(Blank {
        dims: [site.d_in, site.d_out],
    });
    let projection = method.project(site, blank, &mut probe());
    projection.downcast_ref::<Blank>().is_none()
}

/// Stands for a linear layer while a method is asked whether it changes it.
#[derive(Module, Debug)]
struct Blank {
    dims: [usize; 2],
}

impl Projection for Blank {
    fn forward(&self, x: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        let [batch, sequence, _] = x.dims();
        Tensor::zeros([batch, sequence, self.dims[1]], &x.device())
    }
    fn weight(&self, _pass: &Pass<'_>) -> Tensor<2> {
        Tensor::ones(self.dims, &Device::flex())
    }
    fn bias(&self) -> Option<Tensor<1>> {
        None
    }
    fn merge(&self, _pass: &Pass<'_>) -> Option<Dense> {
        None
    }
    fn dims(&self) -> (usize, usize) {
        (self.dims[0], self.dims[1])
    }
}
