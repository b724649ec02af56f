//! Our own format: the trained tensors, and what is needed to put them back.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use models::Model;
use peft_core::compose::is_of_a_part;
use peft_core::state::{self, Tensors};
use peft_core::{Adapted, CoreError, Host, Init, Method, adapt};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Base, Card, Fitted, Opened, files};
use crate::heads::Heads;
use crate::registry::Registry;
use crate::trial::StorageSpec;

/// File of the trained tensors.
const TENSORS: &str = "adapter.safetensors";
/// File of the description.
pub(super) const DESCRIPTION: &str = "adapter.json";
/// Where the parameters that layers share stand in the module tree.
const SHARED: &str = "shared.";

/// What an adapter folder says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Description {
    /// Version of this format.
    format: u32,
    /// The method's kind.
    kind: String,
    /// Its configuration.
    config: Value,
    /// How the frozen weights were stored.
    storage: StorageSpec,
    /// Seed of the start; methods with frozen random parts that they do not keep need it again. Without
    /// one, the tensors hold those parts.
    seed: Option<u64>,
    /// The classes, for a classifier.
    #[serde(flatten)]
    heads: Heads,
    /// How many layers it is used without, the lowest.
    #[serde(default, skip_serializing_if = "is_zero")]
    dropped_layers: usize,
    /// Parameters of the base it was trained on.
    base_parameters: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The classes that a description names; none where it is damaged, which reading it says.
pub(super) fn heads(description: &Map<String, Value>) -> Heads {
    let own = ["labels", "heads"].into_iter();
    let own = own.filter_map(|key| Some((key.to_string(), description.get(key)?.clone())));
    serde_json::from_value(Value::Object(own.collect())).unwrap_or_default()
}

pub(super) fn tensors(folder: &Path) -> Result<Tensors> {
    Ok(state::load(&folder.join(TENSORS))?)
}

pub(super) fn write(model: &Adapted<Model>, card: &Card, folder: &Path) -> Result<()> {
    let description = Description {
        format: 1,
        kind: card.kind.clone(),
        config: card.config.clone(),
        storage: card.storage.clone(),
        seed: card.seed,
        heads: card.heads.clone(),
        dropped_layers: card.dropped_layers,
        base_parameters: model.host.geometry().base_parameters(),
    };
    let mut tensors = state::tensors_where(model, |row| row.is_saved() || is_of_a_part(&row.name));
    if card.seed.is_none() {
        let named = |(name, data)| (format!("{SHARED}{name}"), data);
        tensors.extend(state::float_tensors(&model.shared).into_iter().map(named));
    }
    state::save(&tensors, BTreeMap::new(), &folder.join(TENSORS))?;
    let text = serde_json::to_string_pretty(&description)?;
    state::write_atomically(&folder.join(DESCRIPTION), text.as_bytes())?;
    Ok(())
}

pub(super) fn fit(
    opened: Opened,
    base: &Base,
    registry: &Registry,
    init: &mut Init,
) -> Result<Fitted> {
    let file = opened.folder.join(DESCRIPTION);
    let file = file.display();
    let format = opened.config.get("format").and_then(Value::as_u64);
    ensure!(
        format == Some(1),
        "`{file}` has format {}, this version reads format 1",
        opened.config.get("format").unwrap_or(&Value::Null)
    );
    let description: Description = serde_json::from_value(Value::Object(opened.config))
        .map_err(|e| anyhow::anyhow!("`{file}` is damaged: {e}"))?;
    ensure!(
        registry.entry(&description.kind).is_ok(),
        "`{file}` is of kind `{}`, which this program does not have; use the program that made it, \
         whose own method that is",
        description.kind
    );
    let method = registry.parse(&description.kind, &description.config)?;
    let blank = method.without_start();
    let blank = blank.as_deref().unwrap_or(&*method);
    let (mut adapted, storage) = base.adapt(blank, &description.storage, init)?;
    let geometry = adapted.host.geometry();
    let (dropped, layers) = (description.dropped_layers, geometry.layers);
    ensure!(
        dropped <= layers,
        "`dropped_layers` of `{file}` is {dropped}, expected at most {layers}, the model's layers"
    );
    let parameters = geometry.base_parameters();
    ensure!(
        parameters == description.base_parameters,
        "it was trained on a base of {} parameters, this one has {parameters}",
        description.base_parameters
    );
    let source = opened.folder.join(TENSORS).display().to_string();
    let keeps_shared = description.seed.is_none();
    let may_be_frozen = |name: &str| is_of_a_part(name) || keeps_shared && name.starts_with(SHARED);
    let (other, tensors): (Tensors, Tensors) = opened
        .tensors
        .into_iter()
        .partition(|(name, _)| may_be_frozen(name));
    let (kept, trained) = frozen(&adapted, other);
    nothing_missing(&adapted, &kept, &source)?;
    adapted = state::set(adapted, kept, &source)?;
    let tensors = tensors.into_iter().chain(trained).collect();
    holds_what_is_shared(&adapted, &tensors, &source)?;
    let model = state::restore(adapted, tensors, &source)?;
    let card = Card {
        kind: description.kind,
        config: description.config,
        storage,
        seed: description.seed,
        heads: description.heads,
        dropped_layers: description.dropped_layers,
    };
    Ok(Fitted {
        model,
        method,
        card,
    })
}

/// Refuses a file without the values of parts that are frozen.
fn nothing_missing(adapted: &Adapted<Model>, kept: &Tensors, file: &str) -> Result<()> {
    let of_parts = state::tensors_where(adapted, |row| !row.is_saved() && is_of_a_part(&row.name));
    let missing = of_parts.keys().filter(|name| !kept.contains_key(*name));
    let problems: Vec<_> = missing.map(|name| format!("missing `{name}`")).collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(CoreError::Mismatch {
            file: file.into(),
            problems,
        }
        .into()),
    }
}

/// Refuses a file of before shared matrices were kept: they were drawn from its seed, and are drawn
/// in another way now.
fn holds_what_is_shared(adapted: &Adapted<Model>, tensors: &Tensors, file: &str) -> Result<()> {
    let rows = state::parameters(adapted).into_iter();
    let mut kept = rows.filter(|row| row.buffer && row.name.starts_with(SHARED));
    match kept.find(|row| !tensors.contains_key(&row.name)) {
        None => Ok(()),
        Some(row) => anyhow::bail!(
            "`{file}` does not hold `{}`: an earlier version of this program wrote it, which drew \
             that from the seed and in another way than this one; train the adapter again, or have \
             the program that made it convert it to PEFT's format",
            row.name
        ),
    }
}

/// Kind and configuration of the adapter in a folder, and the digest of its files.
pub(super) fn describe(folder: &Path) -> Result<(String, Value, String)> {
    let file = folder.join(DESCRIPTION);
    let description: Description = serde_json::from_value(Value::Object(files::json(&file)?))
        .map_err(|e| anyhow::anyhow!("`{}` is damaged: {e}", file.display()))?;
    let mut hasher = Sha256::new();
    for name in [DESCRIPTION, TENSORS] {
        let file = folder.join(name);
        let bytes = std::fs::read(&file);
        hasher.update(bytes.with_context(|| format!("cannot read `{}`", file.display()))?);
    }
    let digest = crate::source::hex(&hasher.finalize());
    Ok((description.kind, description.config, digest))
}

/// The adapter in its base, without its head: the base may have one for other classes.
pub(super) fn fit_body(
    opened: Opened,
    model: Model,
    method: &dyn Method,
    init: &mut Init,
) -> Result<Adapted<Model>> {
    let source = opened.folder.join(TENSORS).display().to_string();
    let about: Description = serde_json::from_value(Value::Object(opened.config.clone()))
        .map_err(|e| anyhow::anyhow!("`{source}`: the description is damaged: {e}"))?;
    let packed = method.storage().map(|storage| storage.name());
    let packed = packed.or((about.storage != StorageSpec::F32).then(|| about.storage.name()));
    if let Some(packed) = packed {
        anyhow::bail!(
            "an adapter over `{packed}` is bound to its packed base; a part needs one over `f32`"
        );
    }
    let dropped = about.dropped_layers;
    ensure!(
        dropped == 0,
        "it goes without its lowest {dropped} layers, and a part is of all; `peft-bench convert \
         --drop-layers 0` makes it one"
    );
    let adapted = adapt(model, method, None, init)?;
    let geometry = adapted.host.geometry();
    let head: HashSet<_> = geometry
        .params
        .iter()
        .filter(|p| p.is_task_head())
        .map(|p| p.id)
        .collect();
    let rows = state::parameters(&adapted);
    let (of_head, body): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| head.contains(&row.id));
    let mut tensors = opened.tensors;
    holds_what_is_shared(&adapted, &tensors, &source)?;
    tensors.retain(|name, _| !of_head.iter().any(|row| row.name == *name));
    let missing = body
        .iter()
        .filter(|row| row.is_saved() && !tensors.contains_key(&row.name));
    let problems: Vec<_> = missing
        .map(|row| format!("missing `{}`", row.name))
        .collect();
    if !problems.is_empty() {
        let file = source;
        return Err(CoreError::Mismatch { file, problems }.into());
    }
    Ok(state::set(adapted, tensors, &source)?)
}

/// Of tensors that may be of frozen parameters, those that are, and those that are trained.
fn frozen(adapted: &Adapted<Model>, tensors: Tensors) -> (Tensors, Tensors) {
    let rows = state::parameters(adapted);
    let is_trained = |name: &String| rows.iter().any(|row| row.is_saved() && row.name == *name);
    tensors.into_iter().partition(|(name, _)| !is_trained(name))
}
