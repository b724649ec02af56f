//! How the frozen weights of a model are stored before a method goes over them.

use std::collections::HashSet;

use burn::module::ParamId;

use crate::error::CoreError;
use crate::geometry::Geometry;
use crate::host::{Host, Surgeon};
use crate::method::{Method, Storage};
use crate::projection::{Dense, Proj};
use crate::site::Site;
use crate::state;

/// Packs the frozen weights of a model; a weight that is packed so already stays as it is.
///
/// # Errors
/// If a weight cannot be packed, or is packed another way already.
pub fn pack<H: Host>(host: H, storage: &dyn Storage) -> Result<H, CoreError> {
    stored(host, None, Some(storage))
}

/// The model with its frozen weights as they are stored, but for what the method leaves of those it
/// splits.
pub(crate) fn stored<H: Host>(
    host: H,
    method: Option<&dyn Method>,
    storage: Option<&dyn Storage>,
) -> Result<H, CoreError> {
    let mut packer = Packer {
        method,
        storage,
        error: None,
    };
    let host = host.rebuild(&mut packer);
    match packer.error {
        Some(error) => Err(error),
        None => Ok(host),
    }
}

/// Whether a method divides weights before they are packed ([`Method::split`]), so that it cannot go
/// over this model, where they are packed already.
pub fn divides<H: Host>(packed: &H, method: &dyn Method) -> bool {
    let mut divider = Divider {
        method,
        found: false,
    };
    drop(packed.clone().rebuild(&mut divider));
    divider.found
}

struct Divider<'a> {
    method: &'a dyn Method,
    found: bool,
}

impl Surgeon for Divider<'_> {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        if !self.found && base.packing().is_some() {
            let store = |dense| Ok(Proj::new(dense));
            // A weight that is packed cannot be divided: who tries says so.
            self.found = !matches!(self.method.split(site, &base, &store), Ok(None));
        }
        base
    }
}

struct Packer<'a> {
    method: Option<&'a dyn Method>,
    storage: Option<&'a dyn Storage>,
    error: Option<CoreError>,
}

impl Packer<'_> {
    fn packed(&self, site: &Site, base: &Proj) -> Result<Proj, CoreError> {
        let store = |dense| match self.storage {
            Some(storage) => storage.pack(site, dense),
            None => Ok(Proj::new(dense)),
        };
        let split = self.method.map(|method| method.split(site, base, &store));
        if let Some(split) = split.transpose()?.flatten() {
            return Ok(split);
        }
        match (base.downcast_ref::<Dense>(), self.storage) {
            (Some(dense), Some(_)) => store(dense.clone()),
            (None, Some(storage)) => packed_already(storage, site, base).map(|()| base.clone()),
            (_, None) => Ok(base.clone()),
        }
    }
}

impl Surgeon for Packer<'_> {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        // One error is enough: the rest would be made for nothing.
        if self.error.is_some() {
            return base;
        }
        self.packed(site, &base).unwrap_or_else(|error| {
            self.error = Some(error);
            base
        })
    }
}

/// Accepts a base that is stored as asked for, and no other: packing it again would lose twice.
fn packed_already(storage: &dyn Storage, site: &Site, base: &Proj) -> Result<(), CoreError> {
    match base.packing() {
        Some(found) if found != storage.packing() => {
            let expected = format!(
                "none or `{found}`, which `{}` is packed in already",
                site.path
            );
            let found = format!("`{}`", storage.packing());
            Err(CoreError::bad_value("storage", found, &expected))
        }
        _ => Ok(()),
    }
}

/// Refuses methods that train weights of the base where those are packed: codes have no gradient.
pub(crate) fn trains_nothing_packed<H: Host>(
    host: &H,
    method: &dyn Method,
    geometry: &Geometry,
) -> Result<(), CoreError> {
    let rows = state::parameters(host);
    let dense: HashSet<ParamId> = rows.into_iter().map(|row| row.id).collect();
    let mut trained = geometry.params.iter().filter(|p| method.trains(p));
    match trained.find(|p| !dense.contains(&p.id)) {
        None => Ok(()),
        Some(param) => {
            let expected = "dense, because the method trains it; leave `storage` out, or start from \
                            a model that is not packed";
            Err(CoreError::bad_value(&param.name, "packed", expected))
        }
    }
}
