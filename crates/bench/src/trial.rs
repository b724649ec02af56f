//! Trials: one method at one size, learning rate and seed, fully resolved.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use peft_core::{Method, Storage};
use peft_qlora::storage::Code;
use peft_qlora::{FourBit, Fp4, Int8, Nf4};
use report::record::{Size, TrialInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{BenchError, with_suggestion};
use crate::hub::RepoId;
use crate::parts;
use crate::registry::Registry;
use crate::source::hex;
use crate::study::{MethodRow, OneOrMany, Study, Task, TrainConfig};

/// Bumped when the meaning of a trial changes, so that old records are not taken for new results.
const GENERATION: u32 = 2;

/// Everything needed to run one trial, in this process or another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// Readable name, unique within the study.
    pub id: String,
    /// Hash of everything that decides the result.
    pub hash: String,
    /// Name of the study.
    pub study: String,
    /// The study's question.
    pub question: String,
    /// Folder of the base model, or its name on the hub.
    pub model: String,
    /// The task.
    pub task: Task,
    /// Training settings; one learning rate.
    pub train: TrainConfig,
    /// Name of the row with its size.
    pub label: String,
    /// Name of the row without its size.
    pub family: String,
    /// The method's kind.
    pub kind: String,
    /// The method's configuration.
    pub config: Value,
    /// What is swept and its value.
    pub size: Option<Size>,
    /// How frozen weights are stored.
    pub storage: StorageSpec,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seed of the method's start, the order of the data and dropout.
    pub seed: u64,
    /// Test prompts answered before and after.
    pub samples: usize,
    /// Device by name.
    pub device: String,
}

/// How frozen weights are stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "storage", rename_all = "snake_case")]
pub enum StorageSpec {
    /// As they are.
    #[default]
    F32,
    /// 4-bit NormalFloat.
    Nf4(Nf4),
    /// 4-bit floating point.
    Fp4(Fp4),
    /// 8 bits.
    Int8(Int8),
}

impl StorageSpec {
    /// The storage, or none for dense weights.
    pub fn build(&self) -> Option<&dyn Storage> {
        match self {
            StorageSpec::F32 => None,
            StorageSpec::Nf4(nf4) => Some(nf4),
            StorageSpec::Fp4(fp4) => Some(fp4),
            StorageSpec::Int8(int8) => Some(int8),
        }
    }

    /// Name for tables.
    pub fn name(&self) -> String {
        self.build().map_or_else(|| "f32".into(), Storage::name)
    }
}

impl Trial {
    /// The trial's method.
    ///
    /// # Errors
    /// If the registry does not accept its configuration.
    pub fn method(&self, registry: &Registry) -> Result<Arc<dyn Method>, BenchError> {
        registry.parse(&self.kind, &self.config)
    }

    /// What records and reports say of the trial.
    pub fn info(&self, registry: &Registry) -> Result<TrialInfo, BenchError> {
        let preset = self.method(registry)?.storage();
        let metric = self.task.metric();
        let mut config = serde_json::json!({
            "method": self.config, "task": self.task, "train": self.train,
            "storage": self.storage,
        });
        // A folder says nothing to a reader elsewhere; a name of the hub, with its commit, does.
        if let Ok(Some(id)) = RepoId::of(Path::new(&self.model)) {
            config["model"] = id.to_string().into();
        }
        Ok(TrialInfo {
            id: self.id.clone(),
            hash: self.hash.clone(),
            study: self.study.clone(),
            question: self.question.clone(),
            label: self.label.clone(),
            family: self.family.clone(),
            kind: self.kind.clone(),
            size: self.size.clone(),
            storage: preset.map_or_else(|| self.storage.name(), |preset| preset.name()),
            learning_rate: self.learning_rate,
            seed: self.seed,
            metric: metric.name().into(),
            higher_is_better: metric.higher_is_better(),
            config,
        })
    }
}

/// A row of the study at one size.
struct Sized {
    label: String,
    family: String,
    slug: String,
    config: Value,
    size: Option<Size>,
    storage: StorageSpec,
}

/// Expands a study into its trials, seeds innermost. `sources` holds the fingerprints of model and
/// data, by which results are told apart from those on other files of the same name.
///
/// # Errors
/// If a method's configuration is not accepted, or two rows end up with the same name.
pub fn expand(
    study: &Study,
    registry: &Registry,
    device: &str,
    sources: &BTreeMap<String, String>,
) -> Result<Vec<Trial>, BenchError> {
    let mut trials = Vec::new();
    let mut labels = HashSet::new();
    for (place, row) in study.method.iter().enumerate() {
        for sized in sizes(row, registry, place + 1)? {
            if !labels.insert(sized.label.clone()) {
                let reason = format!("is the second named `{}`; give it a `name`", sized.label);
                return Err(BenchError::Method {
                    place: (place + 1).to_string(),
                    reason,
                });
            }
            let rates = row
                .learning_rate
                .as_ref()
                .unwrap_or(&study.train.learning_rate);
            for rate in rates.values() {
                for seed in &study.seeds {
                    let trial = resolve(study, row, &sized, rate, *seed, device);
                    trials.push(with_hash(trial, sources));
                }
            }
        }
    }
    Ok(trials)
}

fn resolve(
    study: &Study,
    row: &MethodRow,
    sized: &Sized,
    rate: f64,
    seed: u64,
    device: &str,
) -> Trial {
    let mut train = study.train.clone();
    train.learning_rate = OneOrMany::One(rate);
    train.epochs = row.epochs.unwrap_or(train.epochs);
    Trial {
        id: format!("{}--lr{rate:e}--s{seed}", sized.slug),
        hash: String::new(),
        study: study.name.clone(),
        question: study.question.clone(),
        model: study.model.clone(),
        task: study.task.clone(),
        train,
        label: sized.label.clone(),
        family: sized.family.clone(),
        kind: row.kind.clone(),
        config: sized.config.clone(),
        size: sized.size.clone(),
        storage: sized.storage.clone(),
        learning_rate: rate,
        seed,
        samples: study.samples,
        device: device.into(),
    }
}

/// The row at each of its sizes, every configuration accepted by the registry.
fn sizes(row: &MethodRow, registry: &Registry, place: usize) -> Result<Vec<Sized>, BenchError> {
    let at = |reason: String| BenchError::Method {
        place: format!("{place} (`{}`)", row.kind),
        reason,
    };
    let info = registry.entry(&row.kind)?.info;
    let mut config = row.config.clone();
    let storage = storage(row, &mut config).map_err(at)?;
    let swept = info
        .size_key
        .and_then(|key| config.get(key).cloned().map(|value| (key, value)));
    let variants = match swept {
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
            let size = method.size().zip(info.size_key);
            let size = size.map(|(value, name)| Size {
                name: name.into(),
                value,
            });
            Ok(name(row, info.name, config, size, storage.clone()))
        })
        .collect()
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
    let slug = label
        .to_lowercase()
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Sized {
        label,
        family,
        slug,
        config,
        size,
        storage,
    }
}

/// The row's storage, its keys taken out of the method's.
fn storage(
    row: &MethodRow,
    config: &mut serde_json::Map<String, Value>,
) -> Result<StorageSpec, String> {
    match row.storage.as_deref() {
        None | Some("f32") => Ok(StorageSpec::F32),
        Some("nf4") => Ok(StorageSpec::Nf4(four_bit(config)?)),
        Some("fp4") => Ok(StorageSpec::Fp4(four_bit(config)?)),
        Some("int8") => Ok(StorageSpec::Int8(Int8 {})),
        Some(other) => Err(format!(
            "`storage` is `{other}`, expected `f32`, `nf4`, `fp4` or `int8`"
        )),
    }
}

fn four_bit<C: Code>(config: &mut serde_json::Map<String, Value>) -> Result<FourBit<C>, String> {
    let keys = ["block_size", "double_quant"];
    let own = keys
        .iter()
        .filter_map(|key| Some((key.to_string(), config.remove(*key)?)));
    let storage: FourBit<C> = serde_json::from_value(Value::Object(own.collect()))
        .map_err(|e| with_suggestion(&e.to_string()))?;
    storage.check().map_err(|e| e.to_string())?;
    Ok(storage)
}

/// The kind, configuration and storage of a row that names a single method.
///
/// # Errors
/// If the row is not accepted, or its size is a list.
pub fn single(
    row: &MethodRow,
    registry: &Registry,
) -> Result<(String, Value, StorageSpec), BenchError> {
    let mut sized = sizes(row, registry, 1)?;
    match (sized.pop(), sized.is_empty()) {
        (Some(only), true) => Ok((row.kind.clone(), only.config, only.storage)),
        _ => Err(BenchError::Method {
            place: row.kind.clone(),
            reason: "give one size".into(),
        }),
    }
}

/// Hashes everything that decides the result. Paths do not: the files' fingerprints stand for them.
fn with_hash(mut trial: Trial, sources: &BTreeMap<String, String>) -> Trial {
    let mut task = serde_json::to_value(&trial.task).expect("tasks serialise");
    if let Some(Value::Object(data)) = task.get_mut("data") {
        ["train", "dev", "test"].iter().for_each(|split| {
            data.remove(*split);
        });
    }
    let mut config = trial.config.clone();
    parts::forget_folders(&mut config);
    let decisive = serde_json::json!({
        "generation": GENERATION, "sources": sources, "task": task, "train": trial.train,
        "kind": trial.kind, "config": config, "storage": trial.storage,
        "learning_rate": trial.learning_rate, "seed": trial.seed, "samples": trial.samples,
        "device": trial.device,
    });
    trial.hash = hex(&Sha256::digest(decisive.to_string().as_bytes()));
    trial
}

#[cfg(test)]
mod tests {
    use super::*;

    fn study(methods: &str) -> Study {
        let text = format!(
            r#"
            name = "s"
            question = "?"
            model = "m"
            seeds = [1, 2]
            [task]
            kind = "completion"
            data = {{ scenario = 1 }}
            max_length = 56
            max_new_tokens = 32
            metric = "exact_match"
            {methods}"#
        );
        toml::from_str(&text).unwrap()
    }

    fn expanded(methods: &str) -> Result<Vec<Trial>, BenchError> {
        expand(
            &study(methods),
            &Registry::builtin(),
            "cpu",
            &BTreeMap::new(),
        )
    }

    #[test]
    fn sizes_learning_rates_and_seeds_multiply() {
        let method = "[[method]]\nkind = \"lora\"\nrank = [1, 8]\nlearning_rate = [1e-3, 3e-3]";
        let trials = expanded(method).unwrap();
        assert_eq!(trials.len(), 8);
        assert_eq!(trials[0].id, "lora-r1--lr1e-3--s1");
        assert_eq!(trials[7].label, "LoRA r8");
        let hashes: HashSet<_> = trials.iter().map(|t| &t.hash).collect();
        assert_eq!(hashes.len(), 8);
    }

    #[test]
    fn the_same_study_expands_to_the_same_hashes() {
        let method = "[[method]]\nkind = \"houlsby\"\nbottleneck = 4";
        assert_eq!(
            expanded(method).unwrap()[0].hash,
            expanded(method).unwrap()[0].hash
        );
    }

    #[test]
    fn storage_is_an_axis_beside_the_method() {
        let method =
            "[[method]]\nkind = \"pfeiffer\"\nbottleneck = 4\nstorage = \"nf4\"\nblock_size = 128";
        let trial = &expanded(method).unwrap()[0];
        assert_eq!(trial.storage, StorageSpec::Nf4(Nf4::new(128, true)));
        assert_eq!(trial.label, "Pfeiffer nf4+dq 4");
    }

    #[test]
    fn every_storage_is_known_by_its_name_and_comes_back_from_json() {
        let rows = [
            ("f32", StorageSpec::F32, ""),
            ("fp4", StorageSpec::Fp4(Fp4::new(32, false)), "fp4"),
            ("int8", StorageSpec::Int8(Int8 {}), "int8"),
        ];
        for (name, storage, label) in rows {
            let keys = match name {
                "fp4" => "block_size = 32\ndouble_quant = false",
                _ => "",
            };
            let method =
                format!("[[method]]\nkind = \"lora\"\nrank = 2\nstorage = \"{name}\"\n{keys}");
            let trial = &expanded(&method).unwrap()[0];
            assert_eq!(trial.storage, storage);
            assert!(trial.label.contains(label), "{}", trial.label);
            let json = serde_json::to_value(&storage).unwrap();
            assert_eq!(json["storage"], name);
            assert_eq!(
                serde_json::from_value::<StorageSpec>(json).unwrap(),
                storage
            );
        }
        let error = expanded("[[method]]\nkind = \"lora\"\nstorage = \"int4\"").unwrap_err();
        assert!(error.to_string().contains("`fp4` or `int8`"), "{error}");
        let blocks = "[[method]]\nkind = \"lora\"\nstorage = \"int8\"\nblock_size = 64";
        let error = expanded(blocks).unwrap_err().to_string();
        assert!(error.contains("unknown field `block_size`"), "{error}");
    }

    #[test]
    fn a_misspelt_key_of_a_method_names_the_row_and_the_nearest_key() {
        let error = expanded("[[method]]\nkind = \"lora\"\nrnak = 8")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("method 1") && error.contains("did you mean `rank`"),
            "{error}"
        );
    }

    #[test]
    fn records_name_a_model_of_the_hub_and_no_folder() {
        let registry = Registry::builtin();
        let mut trial = expanded("[[method]]\nkind = \"lora\"").unwrap().remove(0);
        assert_eq!(trial.info(&registry).unwrap().config.get("model"), None);
        trial.model = format!("hf://org/model@{}", "0a".repeat(20));
        let info = trial.info(&registry).unwrap();
        assert_eq!(info.config["model"], trial.model);
    }

    #[test]
    fn two_rows_of_one_name_are_refused() {
        let row = "[[method]]\nkind = \"lora\"\nrank = 8\n";
        let error = expanded(&row.repeat(2)).unwrap_err().to_string();
        assert!(error.contains("second named `LoRA r8`"), "{error}");
    }
}
