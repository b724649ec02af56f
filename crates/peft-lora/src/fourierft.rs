//! FourierFT: an update with a few trained entries in its spectrum.
//!
//! Paper: Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
//! arXiv 2405.03003.
//! Seam: linear layers; layers of the same shape share the places of their entries.
//! `y = x (W + D) + b` with `D = scaling * Re(F^-1(S))`, where `S` is zero but for `n_frequency`
//! entries at random places. The trained entries start standard normal, as in HF PEFT.
//!
//! An entry `c` at row `u` and column `v` of the spectrum adds
//! `c cos(2 pi (u o / out + v i / in)) / (in out)` to the weight of input `i` and output `o`. All of them
//! together are one fast transform, whose backward pass is the same transform again.

mod places;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, SharedSlot, Site, Start, Targets, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, number, peft_targets_of, place, selected, with_dense_update};
use places::{LARGEST, random_places};

/// Configuration of FourierFT, `kind = "fourierft"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FourierFt {
    /// Number of trained entries of each spectrum.
    pub n_frequency: usize,
    /// Factor on the update.
    pub scaling: f64,
    /// Seed of the places of the entries; the same as in HF PEFT.
    pub random_loc_seed: u64,
    /// Which linear layers; query and value (or the fused projection) where none are named.
    pub targets: Targets,
}

impl Default for FourierFt {
    fn default() -> Self {
        Self {
            n_frequency: 1000,
            scaling: 150.0,
            random_loc_seed: 777,
            targets: Targets::Default,
        }
    }
}

impl FourierFt {
    fn check_site(&self, site: &Site) -> Result<(), CoreError> {
        let (size, path) = (site.d_in * site.d_out, &site.path);
        if size > LARGEST {
            let expected = format!("layers of at most {LARGEST} weights, which `{path}` is not");
            return Err(CoreError::bad_value("targets", size, &expected));
        }
        if self.n_frequency == 0 || self.n_frequency > size {
            let expected = format!("between 1 and {size}, the number of weights of `{path}`");
            return Err(CoreError::bad_value(
                "n_frequency",
                self.n_frequency,
                &expected,
            ));
        }
        Ok(())
    }
}

impl MethodConfig for FourierFt {
    const INFO: MethodInfo = MethodInfo {
        kind: "fourierft",
        name: "FourierFT",
        paper: "Gao et al. 2024, arXiv 2405.03003",
        seam: "linear layers, shared places",
        formula: "n_frequency per target",
        start: Start::Elsewhere("the entries of the spectrum start standard normal"),
        mergeable: true,
        size_key: Some("n_frequency"),
    };

    fn examples() -> Vec<Self> {
        vec![
            FourierFt {
                n_frequency: 2,
                scaling: 60.0,
                targets: Targets::all_linear(),
                ..Self::default()
            },
            FourierFt {
                n_frequency: 20,
                scaling: 40.0,
                ..Self::default()
            },
        ]
    }

    fn from_peft(fields: &mut Fields, geometry: &Geometry) -> Result<Option<Self>, CoreError> {
        if fields.peek("peft_type") != "FOURIERFT" {
            return Ok(None);
        }
        fields.ignore(&["init_weights"]);
        Ok(Some(FourierFt {
            targets: peft_targets_of(fields, geometry)?,
            n_frequency: fields.take("n_frequency")?.unwrap_or(1000),
            scaling: fields.take("scaling")?.unwrap_or(150.0),
            random_loc_seed: fields.take("random_loc_seed")?.unwrap_or(777),
        }))
    }
}

impl Method for FourierFt {
    fn check(&self, geometry: &Geometry) -> Result<(), CoreError> {
        finite("scaling", self.scaling)?;
        let sites = self.targets.select(&geometry.sites)?;
        sites.into_iter().try_for_each(|site| self.check_site(site))
    }

    fn shared(&self, geometry: &Geometry, init: &mut Init) -> Option<SharedSlot> {
        let mut places: Vec<Places> = Vec::new();
        for site in selected(&self.targets, geometry) {
            let dims = (site.d_in, site.d_out);
            if !places.iter().any(|known| known.dims == dims) {
                places.push(Places::new(self, dims, init));
            }
        }
        Some(SharedSlot::new(FourierShared { places }))
    }

    fn project(&self, site: &Site, base: Proj, init: &mut Init) -> Proj {
        if !self.targets.contains(site) {
            return base;
        }
        Proj::new(FourierLinear {
            spectrum: Param::from_tensor(init.normal([self.n_frequency], 1.0)),
            scaling: self.scaling,
            base,
        })
    }

    fn parameters(&self, geometry: &Geometry) -> usize {
        selected(&self.targets, geometry).count() * self.n_frequency
    }

    fn size(&self) -> Option<u64> {
        Some(self.n_frequency as u64)
    }

    fn peft(&self, geometry: &Geometry) -> Option<Foreign> {
        let sites: Vec<_> = selected(&self.targets, geometry).collect();
        let fields = serde_json::json!({
            "peft_type": "FOURIERFT", "n_frequency": self.n_frequency,
            "scaling": number(self.scaling), "random_loc_seed": self.random_loc_seed,
            "n_frequency_pattern": {}, "bias": "none", "init_weights": false,
            "target_modules": peft_targets(&sites, geometry),
            "fan_in_fan_out": geometry.keeps_weights_in_out(),
        });
        let rule =
            |site: &&Site| Rule::as_is(place(site, "spectrum"), key(site, "fourierft_spectrum"));
        Some(Foreign::new(fields, sites.iter().map(rule).collect()))
    }
}

/// The places of the entries in every shape of layer.
#[derive(Module, Debug)]
pub struct FourierShared {
    places: Vec<Places>,
}

/// Where the entries stand in the spectra of layers of one shape.
#[derive(Module, Debug)]
struct Places {
    dims: (usize, usize),
    /// Of a spectrum of shape `[d_in, d_out]`, row by row, `[n_frequency]`
    at: Param<Tensor<1, Int>>,
}

impl Places {
    fn new(method: &FourierFt, (d_in, d_out): (usize, usize), init: &Init) -> Self {
        let n = method.n_frequency;
        let theirs = random_places(method.random_loc_seed, d_in * d_out, n);
        // PyTorch's layout is [out, in].
        let ours = theirs
            .iter()
            .map(|at| (at % d_in * d_out + at / d_in) as i32);
        let data = TensorData::new(ours.collect(), [n]);
        Self {
            dims: (d_in, d_out),
            at: Param::initialized(ParamId::new(), Tensor::from_data(data, init.device())),
        }
    }
}

/// A linear layer with a sparse spectrum beside it.
#[derive(Module, Debug)]
pub struct FourierLinear {
    base: Proj,
    /// `[n_frequency]`
    spectrum: Param<Tensor<1>>,
    scaling: f64,
}

impl FourierLinear {
    /// The update, `[d_in, d_out]`.
    fn update(&self, pass: &Pass<'_>) -> Tensor<2> {
        let shared: &FourierShared = pass.shared();
        let (d_in, d_out) = self.base.dims();
        let mut places = shared.places.iter();
        let places = places
            .find(|places| places.dims == (d_in, d_out))
            .expect("places were drawn for the shapes of all targets");
        let size = d_in * d_out;
        let share = self.scaling / size as f64;
        let entries = self.spectrum.val().mul_scalar(share);
        let spectrum = Tensor::<1>::zeros([size], &entries.device());
        let at = places.at.val();
        let spectrum = spectrum.select_assign(0, at, entries, IndexingUpdateOp::Add);
        kernels::real_dft2(spectrum.reshape([d_in, d_out]))
    }
}

impl Reweighted for FourierLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        with_dense_update(&self.base, x, self.update(pass), pass)
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        self.base.weight(pass) + self.update(pass)
    }
}

#[cfg(test)]
mod tests;
