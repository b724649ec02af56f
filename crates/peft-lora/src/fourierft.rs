//! FourierFT: an update with a few trained entries in its spectrum.
//!
//! Paper: Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
//! arXiv 2405.03003.
//! Seam: linear layers, with tables shared across layers of the same shape.
//! `y = x W + b + x D` with `D = scaling * Re(F^-1(S))`, where `S` is zero but for `n_frequency`
//! entries at random places. The trained entries start standard normal, as in HF PEFT.
//!
//! An entry `c` at row `u` and column `v` of the spectrum adds
//! `c cos(2 pi (u o / out + v i / in)) / (in out)` to the weight of input `i` and output `o`: by the
//! addition theorem a product of rank 2. So the activations go through tables of cosines and
//! sines of `2 n_frequency` columns where that is less work than one dense matrix. With more
//! frequencies the dense update and its dense gradient are formed from the same tables.

mod places;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::{
    CoreError, Fields, Foreign, Geometry, Init, Method, MethodConfig, MethodInfo, Pass, Proj,
    Reweighted, Rule, SharedSlot, Site, Start, Targets, exchange::peft_targets, kernels,
};
use serde::{Deserialize, Serialize};

use crate::family::{finite, key, number, peft_targets_of, place, selected};
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
        seam: "linear layers, shared tables",
        formula: "n_frequency per target",
        start: Start::Elsewhere("the entries of the spectrum start standard normal"),
        mergeable: true,
        size_key: Some("n_frequency"),
    };

    fn examples() -> Vec<Self> {
        // Through the tables on the toy's layers, and through a dense update.
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
        let mut tables: Vec<Tables> = Vec::new();
        for site in selected(&self.targets, geometry) {
            if !tables
                .iter()
                .any(|table| table.dims() == (site.d_in, site.d_out))
            {
                tables.push(Tables::new(self, site.d_in, site.d_out, init));
            }
        }
        Some(SharedSlot::new(FourierShared { tables }))
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

/// The tables of every shape of layer.
#[derive(Module, Debug)]
pub struct FourierShared {
    tables: Vec<Tables>,
}

/// Cosines and sines at the entries' frequencies, for the layers of one shape.
#[derive(Module, Debug)]
struct Tables {
    /// Cosines, then sines, `[d_in, 2 n]`
    inputs: Param<Tensor<2>>,
    /// Cosines, then negative sines, over the number of weights, `[2 n, d_out]`
    outputs: Param<Tensor<2>>,
}

impl Tables {
    fn new(method: &FourierFt, d_in: usize, d_out: usize, init: &Init) -> Self {
        let n = method.n_frequency;
        let places = random_places(method.random_loc_seed, d_in * d_out, n);
        // PyTorch's layout is [out, in].
        let rows: Vec<usize> = places.iter().map(|at| at / d_in).collect();
        let columns: Vec<usize> = places.iter().map(|at| at % d_in).collect();
        let frozen = |values: Vec<f32>, shape: [usize; 2]| {
            let tensor = Tensor::from_data(TensorData::new(values, shape), init.device());
            Param::from_tensor(tensor).set_require_grad(false)
        };
        let mut inputs = Vec::with_capacity(d_in * 2 * n);
        for i in 0..d_in {
            inputs.extend(columns.iter().map(|v| angle(v * i, d_in).cos() as f32));
            inputs.extend(columns.iter().map(|v| angle(v * i, d_in).sin() as f32));
        }
        let share = 1.0 / (d_in * d_out) as f64;
        let mut outputs = Vec::with_capacity(d_out * 2 * n);
        let mut fill = |wave: fn(f64) -> f64| {
            for u in &rows {
                outputs.extend((0..d_out).map(|o| (wave(angle(u * o, d_out)) * share) as f32));
            }
        };
        fill(f64::cos);
        fill(|angle| -angle.sin());
        Self {
            inputs: frozen(inputs, [d_in, 2 * n]),
            outputs: frozen(outputs, [2 * n, d_out]),
        }
    }

    fn dims(&self) -> (usize, usize) {
        let ([d_in, _], [_, d_out]) = (
            self.inputs.lazy_shape().dims(),
            self.outputs.lazy_shape().dims(),
        );
        (d_in, d_out)
    }
}

/// `2 pi` times a fraction, whole turns left out first for the sake of precision.
fn angle(numerator: usize, denominator: usize) -> f64 {
    std::f64::consts::TAU * (numerator % denominator) as f64 / denominator as f64
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
    /// `[d_in, 2 n]` and `[2 n, d_out]`, whose product is the update.
    fn factors(&self, pass: &Pass<'_>) -> (Tensor<2>, Tensor<2>) {
        let shared: &FourierShared = pass.shared();
        let mut tables = shared.tables.iter();
        let tables = tables
            .find(|tables| tables.dims() == self.base.dims())
            .expect("tables were made for the shapes of all targets");
        let weights = self.spectrum.val().mul_scalar(self.scaling);
        let weights = Tensor::cat(vec![weights.clone(), weights], 0);
        let outputs = tables.outputs.val() * weights.unsqueeze_dim(1);
        (tables.inputs.val(), outputs)
    }

    /// Whether the tables are less work than a dense matrix.
    fn is_narrow(&self) -> bool {
        let ((d_in, d_out), [n]) = (self.base.dims(), self.spectrum.lazy_shape().dims());
        2 * n * (d_in + d_out) < d_in * d_out
    }
}

impl Reweighted for FourierLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(x.clone(), pass);
        let (inputs, outputs) = self.factors(pass);
        match self.is_narrow() {
            true => kernels::linear_onto(y, kernels::linear(x, inputs, None), outputs),
            false => kernels::linear_onto(y, x, inputs.matmul(outputs)),
        }
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let (inputs, outputs) = self.factors(pass);
        self.base.weight(pass) + inputs.matmul(outputs)
    }
}

#[cfg(test)]
mod tests;
