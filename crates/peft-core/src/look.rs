//! What a method sees of the training data before it is put into a model.
//!
//! Most methods start from numbers drawn at random. One that starts from the data says so
//! ([`Method::looks_at`]) and gets a [`Preview`]: what goes into the base's linear layers, and how
//! the loss changes with the parameters of a method that is put into the base to try. What it finds
//! becomes part of its configuration, so that an adapter needs no data to be put back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;

use crate::error::CoreError;
use crate::exchange::{Place, places};
use crate::geometry::Geometry;
use crate::host::{Adapted, Host, adapt};
use crate::init::Init;
use crate::method::{Method, MethodConfig, Storage};
use crate::pass::Pass;
use crate::projection::{Dense, Proj, Projection};
use crate::site::{Site, Targets};

/// What a method may look at: the base as it will be stored, and some batches of training data.
pub trait Preview {
    /// Lets the base read the batches, and shows what goes into its linear layers: batch by batch,
    /// in order of use.
    ///
    /// # Errors
    /// If a weight of the base cannot be stored as asked for.
    fn inputs(
        &self,
        targets: &Targets,
        see: &mut dyn FnMut(Input<'_>) -> Result<(), CoreError>,
    ) -> Result<(), CoreError>;

    /// Puts a method into the base to try, without a look of its own, and gives the values of its
    /// trained parameters with the gradients of the loss, the mean over the batches.
    ///
    /// # Errors
    /// If the method does not go with the base.
    fn slopes(&self, method: &dyn Method) -> Result<Vec<Slope>, CoreError>;
}

/// What goes into a linear layer.
pub struct Input<'a> {
    /// The layer.
    pub site: &'a Site,
    /// `[batch, sequence, d_in]`
    pub x: Tensor<3>,
    /// What its tokens are.
    pub tokens: &'a Tokens,
}

/// What the tokens of a batch are.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// 1 at tokens that are no padding, `[batch, sequence]`.
    pub real: Tensor<2>,
    /// 1 at tokens that are to be learned, of a classifier's text all, `[batch, sequence]`.
    pub learned: Tensor<2>,
}

/// A trained parameter, and how the loss changes with it.
#[derive(Clone, Debug)]
pub struct Slope {
    /// Where it lies, see [`exchange`](crate::exchange).
    pub place: String,
    /// Its values.
    pub value: TensorData,
    /// The gradient of the loss.
    pub gradient: TensorData,
}

/// A method after its look at the data.
#[derive(Clone, Debug)]
pub struct Looked {
    /// Its configuration with what it found: all that is needed to load an adapter.
    pub config: Value,
    /// The method, which also knows where its parameters start.
    pub method: Arc<dyn Method>,
}

impl Looked {
    /// A method that has looked.
    ///
    /// # Panics
    /// If its configuration does not serialise, which every method's does.
    pub fn new<M: MethodConfig>(method: M) -> Self {
        Self {
            config: serde_json::to_value(&method).expect("configurations serialise"),
            method: Arc::new(method),
        }
    }
}

/// Batches of training data, for whoever trains a model.
pub trait Batches<H: Host> {
    /// How many there are.
    fn count(&self) -> usize;

    /// What the tokens of a batch are.
    fn tokens(&self, index: usize) -> Tokens;

    /// The training loss of a batch, `[1]`.
    fn loss(&self, index: usize, model: &Adapted<H>) -> Tensor<1>;
}

/// Lets a method look at batches on this device; none where it does not want to. The base is stored
/// as [`adapt`] will store it, and what is put into it to try starts from `seed`.
///
/// # Errors
/// If the configuration makes no sense for this model, there is no batch, or the method finds
/// nothing to start from.
pub fn look<H: Host>(
    host: &H,
    method: &dyn Method,
    storage: Option<&dyn Storage>,
    batches: &dyn Batches<H>,
    (seed, device): (u64, &Device),
) -> Result<Option<Looked>, CoreError> {
    if method.looks_at() == 0 {
        return Ok(None);
    }
    let geometry = host.geometry();
    method.check(&geometry)?;
    if batches.count() == 0 {
        let expected = "at least one, for the method starts from the data";
        return Err(CoreError::bad_value("batches", 0, expected));
    }
    let preset = method.storage();
    let ahead = Ahead {
        host,
        storage: preset.as_deref().or(storage),
        batches,
        seed,
        device,
    };
    method.look(&geometry, &ahead)
}

struct Ahead<'a, H: Host> {
    host: &'a H,
    storage: Option<&'a dyn Storage>,
    batches: &'a dyn Batches<H>,
    seed: u64,
    device: &'a Device,
}

impl<H: Host> Ahead<'_, H> {
    fn adapted(&self, method: &dyn Method) -> Result<Adapted<H>, CoreError> {
        let mut init = Init::new(self.seed, self.device);
        adapt(self.host.clone(), method, self.storage, &mut init)
    }
}

impl<H: Host> Preview for Ahead<'_, H> {
    fn inputs(
        &self,
        targets: &Targets,
        see: &mut dyn FnMut(Input<'_>) -> Result<(), CoreError>,
    ) -> Result<(), CoreError> {
        let watch = Watch {
            targets: targets.clone(),
            seen: Seen::default(),
        };
        let model = self.adapted(&watch)?;
        for index in 0..self.batches.count() {
            drop(self.batches.loss(index, &model));
            let tokens = self.batches.tokens(index);
            for (site, x) in watch.seen.take() {
                see(Input {
                    site: &site,
                    x,
                    tokens: &tokens,
                })?;
            }
        }
        Ok(())
    }

    fn slopes(&self, method: &dyn Method) -> Result<Vec<Slope>, CoreError> {
        let model = self.adapted(method)?;
        let count = self.batches.count();
        let mut sum = GradientsAccumulator::new();
        for index in 0..count {
            let loss = self.batches.loss(index, &model).div_scalar(count as f64);
            if !loss.is_tracked() {
                continue; // Nothing is trained.
            }
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            sum.accumulate(&model, gradients);
        }
        let mut reader = SlopeReader {
            gradients: sum.grads(),
            places: places(&model),
            slopes: Vec::new(),
        };
        model.visit(&mut reader);
        Ok(reader.slopes)
    }
}

struct SlopeReader {
    gradients: GradientsParams,
    places: HashMap<ParamId, Place>,
    slopes: Vec<Slope>,
}

impl ModuleVisitor for SlopeReader {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let place = self.places.get(&param.id);
        let gradient = self.gradients.remove::<D>(param.id);
        if let (Some(place), Some(gradient)) = (place, gradient) {
            self.slopes.push(Slope {
                place: place.name.clone(),
                value: param.val().into_data(),
                gradient: gradient.into_data(),
            });
        }
    }
}

/// The method that does nothing but keep what goes into linear layers.
#[derive(Debug)]
struct Watch {
    targets: Targets,
    seen: Seen,
}

impl Method for Watch {
    fn project(&self, site: &Site, base: Proj, _init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(Watched {
            base,
            site: site.clone(),
            seen: self.seen.clone(),
        })
    }

    fn parameters(&self, _geometry: &Geometry) -> usize {
        0
    }
}

/// What went into the layers that are watched, in order of use. Clones share it.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<(Site, Tensor<3>)>>>);

impl Seen {
    fn keep(&self, site: &Site, x: Tensor<3>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((site.clone(), x));
    }

    fn take(&self) -> Vec<(Site, Tensor<3>)> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut kept)
    }
}

#[derive(Module, Debug)]
struct Watched {
    base: Proj,
    #[module(skip)]
    site: Site,
    #[module(skip)]
    seen: Seen,
}

impl Projection for Watched {
    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        self.seen.keep(&self.site, x.clone().detach());
        self.base.forward(x, pass)
    }
    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass)
    }
    fn bias(&self) -> Option<Tensor<1>> {
        self.base.bias()
    }
    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        self.base.merge(pass)
    }
    fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
    fn base(&self) -> Option<Proj> {
        Some(self.base.clone())
    }
}

#[cfg(test)]
mod tests;
