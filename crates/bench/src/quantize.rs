//! A model folder with its linear layers packed, as bitsandbytes and `transformers` read it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::Tensor;
use models::Model;
use peft_core::{
    CoreError, Dense, Host, Init, Part, Pass, Proj, Role, Site, Storage, Surgeon, state,
};
use peft_qlora::bitsandbytes;
use serde_json::Value;

use crate::source;

/// What PyTorch decodes the weights to.
const DTYPE: &str = "float32";

/// What packing did to the layers of one role.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    /// Number of layers.
    pub layers: usize,
    /// Number of weights.
    pub weights: usize,
    /// Bytes that they take packed.
    pub bytes: usize,
    squares: f64,
    errors: f64,
}

impl Loss {
    /// Bits a weight, scales included.
    pub fn bits(&self) -> f64 {
        8.0 * self.bytes as f64 / self.weights as f64
    }

    /// Root of the mean square of what unpacking does not give back.
    pub fn rmse(&self) -> f64 {
        (self.errors / self.weights as f64).sqrt()
    }

    /// The same as a share of the weights' own root mean square.
    pub fn relative(&self) -> f64 {
        (self.errors / self.squares).sqrt()
    }

    /// Takes other layers in.
    pub fn add(&mut self, other: &Loss) {
        self.layers += other.layers;
        self.weights += other.weights;
        self.bytes += other.bytes;
        self.squares += other.squares;
        self.errors += other.errors;
    }
}

/// Packs the linear layers of the model in `folder` and writes the result to `out`, whole or not at
/// all. Returns what it lost, by role.
///
/// # Errors
/// If the model cannot be read, is packed already or has weights that the storage does not take, or
/// if `out` holds anything or cannot be written.
pub fn quantize(folder: &Path, storage: &dyn Storage, out: &Path) -> Result<BTreeMap<Role, Loss>> {
    let mut init = Init::new(0, &peft_core::device("cpu")?);
    let loaded = source::load(folder, None, &mut init)?;
    ensure!(
        loaded.new_layers.is_empty(),
        "`{}` has no {}; quantise a model with its head",
        folder.display(),
        loaded.new_layers.join(", ")
    );
    let mut packer = Packer {
        storage,
        tensors: state::Tensors::new(),
        losses: BTreeMap::new(),
        layer: None,
        error: None,
    };
    let model = loaded.model.rebuild(&mut packer);
    if let Some(error) = packer.error {
        return Err(error.into());
    }
    let mut tensors = model.export();
    let dense = dense_layers(&model, &tensors);
    tensors.append(&mut packer.tensors);
    let layer = packer.layer.context("the model has no linear layers")?;
    let mut config = loaded.config;
    config["quantization_config"] =
        bitsandbytes::quantization_config(&layer, &dense).expect("a layer just packed");
    write(folder, &tensors, &config, out)?;
    Ok(packer.losses)
}

/// The linear layers that stay dense, by their paths.
fn dense_layers(model: &Model, tensors: &state::Tensors) -> Vec<String> {
    let params = model.geometry().params;
    let linear = params
        .iter()
        .filter(|p| matches!(p.part, Part::Linear | Part::Head) && tensors.contains_key(&p.name));
    let paths: BTreeSet<_> = linear
        .filter_map(|p| p.name.strip_suffix(".weight"))
        // The head of a language model is there also where it shares the embedding table.
        .chain(model.is_causal().then_some("lm_head"))
        .collect();
    paths.into_iter().map(String::from).collect()
}

struct Packer<'a> {
    storage: &'a dyn Storage,
    tensors: state::Tensors,
    losses: BTreeMap<Role, Loss>,
    /// One of the packed layers.
    layer: Option<Proj>,
    error: Option<CoreError>,
}

impl Surgeon for Packer<'_> {
    fn projection(&mut self, site: &Site, base: Proj) -> Proj {
        self.pack(site, &base).unwrap_or_else(|error| {
            self.error.get_or_insert(error);
            base
        })
    }
}

impl Packer<'_> {
    fn pack(&mut self, site: &Site, base: &Proj) -> Result<Proj, CoreError> {
        let Some(dense) = base.downcast_ref::<Dense>() else {
            let found = base.packing().unwrap_or("no dense layer".into());
            let expected = "a dense weight; quantise the model it was made from";
            return Err(CoreError::bad_value(&site.path, found, expected));
        };
        let packed = self.storage.pack(site, dense.clone())?;
        let tensors = bitsandbytes::tensors(&site.path, &packed, DTYPE);
        self.tensors.append(&mut tensors.expect("a packed layer"));
        let loss = self.loss(site, dense, &packed);
        self.losses.entry(site.role).or_default().add(&loss);
        self.layer.get_or_insert_with(|| packed.clone());
        Ok(packed)
    }

    /// Compares a packed layer with the weight that it was made from.
    fn loss(&self, site: &Site, dense: &Dense, packed: &Proj) -> Loss {
        let values = |weight: Tensor<2>| weight.into_data().convert::<f32>();
        let (before, after) = (
            values(dense.weight.val()),
            values(packed.weight(&Pass::new())),
        );
        let (mut squares, mut errors) = (0.0, 0.0);
        for (a, b) in before.iter::<f64>().zip(after.iter::<f64>()) {
            squares += a * a;
            errors += (a - b) * (a - b);
        }
        Loss {
            layers: 1,
            weights: site.d_in * site.d_out,
            bytes: self.storage.bytes((site.d_in, site.d_out)),
            squares,
            errors,
        }
    }
}

/// Writes the folder under another name and renames it, so that a reader never sees half of it.
fn write(folder: &Path, tensors: &state::Tensors, config: &Value, out: &Path) -> Result<()> {
    let cannot = || format!("cannot write `{}`", out.display());
    let empty = std::fs::read_dir(out).map_or(Ok(true), |mut entries| match entries.next() {
        None => Ok(true),
        Some(entry) => entry.map(|_| false),
    });
    ensure!(
        empty.with_context(cannot)?,
        "`{}` is not empty; name a new folder with `--out`",
        out.display()
    );
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(cannot)?;
    let half = tempfile::Builder::new()
        .prefix(".quantize-")
        .tempdir_in(parent)
        .with_context(cannot)?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    state::save(tensors, metadata, &half.path().join("model.safetensors"))?;
    let text = serde_json::to_string_pretty(config)?;
    state::write_atomically(&half.path().join("config.json"), text.as_bytes())?;
    source::copy_tokenizer(folder, half.path())?;
    share(half.path()).with_context(cannot)?;
    std::fs::rename(half.path(), out).with_context(cannot)?;
    // What was to be removed has another name now.
    let _ = half.keep();
    Ok(())
}

/// A temporary folder is private to its owner; models are meant to be shared.
fn share(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
