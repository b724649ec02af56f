//! A row of a study at each of its sizes.

use peft_core::Method;
use report::record::Size;
use serde_json::Value;

use crate::error::BenchError;
use crate::registry::Registry;
use crate::storage::StorageSpec;
use crate::study::MethodRow;

/// A row of the study at one size.
pub(super) struct Sized {
    pub(super) label: String,
    pub(super) family: String,
    pub(super) slug: String,
    pub(super) config: Value,
    pub(super) size: Option<Size>,
    pub(super) storage: StorageSpec,
}

/// The row at each of its sizes, every configuration accepted by the registry.
pub(super) fn sizes(
    row: &MethodRow,
    registry: &Registry,
    place: usize,
) -> Result<Vec<Sized>, BenchError> {
    let at = |reason: String| BenchError::Method {
        place: format!("{place} (`{}`)", row.kind),
        reason,
    };
    row.check().map_err(at)?;
    let info = registry.entry(&row.kind)?.info;
    let mut config = row.config.clone();
    let storage = row.storage.as_deref().unwrap_or("f32");
    let storage = StorageSpec::take(storage, &mut config).map_err(at)?;
    let swept = info
        .size_key
        .and_then(|key| config.get(key).cloned().map(|value| (key, value)));
    let variants = match swept {
        Some((key, Value::Array(values))) if values.is_empty() => {
            return Err(at(format!(
                "`{key}` is an empty list, expected at least one value"
            )));
        }
        Some((key, Value::Array(values))) => values.into_iter().map(|v| Some((key, v))).collect(),
        Some((key, value)) => vec![Some((key, value))],
        None => vec![None],
    };
    variants
        .into_iter()
        .map(|size| {
            if let Some((key, value)) = &size {
                config.insert((*key).to_string(), value.clone());
            }
            let config = Value::Object(config.clone());
            let resolved = registry.resolve(&row.kind, &config).map_err(|e| match e {
                // The place in the file says more than the kind.
                BenchError::Method { reason, .. } => at(reason),
                other => other,
            });
            let (config, method) = resolved?;
            stored_once(row, &*method).map_err(at)?;
            let size = method.size().zip(info.size_key);
            let size = size.map(|(value, name)| Size {
                name: name.into(),
                value,
            });
            Ok(name(row, info.name, config, size, storage.clone()))
        })
        .collect()
}

/// Refuses a storage beside the one that the method brings.
fn stored_once(row: &MethodRow, method: &dyn Method) -> Result<(), String> {
    match row.storage.as_ref().zip(method.storage()) {
        Some((found, own)) => Err(format!(
            "`storage` is `{found}`, expected none: the method packs the frozen weights itself, as {}",
            own.packing()
        )),
        None => Ok(()),
    }
}

fn name(
    row: &MethodRow,
    name: &str,
    config: Value,
    size: Option<Size>,
    storage: StorageSpec,
) -> Sized {
    let mut family = row.name.clone().unwrap_or_else(|| name.into());
    if row.name.is_none() && storage != StorageSpec::F32 {
        family = format!("{family} {}", storage.name());
    }
    let label = match &size {
        None => family.clone(),
        Some(size) if size.name == "rank" => format!("{family} r{}", size.value),
        Some(size) => format!("{family} {}", size.value),
    };
    // `(IA)^3` to `ia-3`, `Compacter++ 4` to `compacterpp-4`.
    let spelt = label.to_lowercase().replace('+', "p");
    let words = spelt.split(|c: char| !c.is_ascii_alphanumeric());
    let slug = words.filter(|word| !word.is_empty()).collect::<Vec<_>>();
    let slug = slug.join("-");
    Sized {
        label,
        family,
        slug,
        config,
        size,
        storage,
    }
}
