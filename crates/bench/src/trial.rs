//! Trials: one method at one size, learning rate and seed, fully resolved.

mod hash;
mod size;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use peft_core::Method;
use report::record::{Record, Size, TrialInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::BenchError;
use crate::hub::RepoId;
use crate::layer_drop::AdapterDrop;
use crate::registry::Registry;
pub use crate::storage::StorageSpec;
use crate::study::{MethodRow, OneOrMany, Study, Task, TrainConfig};
use hash::with_hash;
use size::{Sized, sizes};

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

impl Trial {
    /// The trial's method.
    ///
    /// # Errors
    /// If the registry does not accept its configuration.
    pub fn method(&self, registry: &Registry) -> Result<Arc<dyn Method>, BenchError> {
        registry.parse(&self.kind, &self.config)
    }

    /// Refuses a method that does not go with the task or the training settings.
    ///
    /// # Errors
    /// If it is made for fewer tasks, or the trial packs texts and it needs a row for each, or the
    /// registry does not accept it.
    pub fn check_method(&self, registry: &Registry) -> Result<(), BenchError> {
        let method = self.method(registry)?;
        let refused = |reason: String| {
            Err(BenchError::Method {
                place: format!("`{}`", self.label),
                reason,
            })
        };
        let (wanted, made_for) = (self.task.members().len(), method.tasks());
        if let Some(count) = made_for.filter(|count| *count < wanted) {
            return refused(format!(
                "it is made for {count} tasks, expected at least the {wanted} of the mixture"
            ));
        }
        let leaves_out = matches!(
            self.train.adapter_drop,
            Some(AdapterDrop::Specialized { .. })
        );
        if leaves_out && method.looks_at() > 0 {
            return refused(
                "`train.adapter_drop` leaves layers without the method, which starts from a look at the \
                 data in all of them; leave one of the two out"
                    .into(),
            );
        }
        if self.train.packing && method.needs_own_rows() {
            return refused(
                "`train.packing` is true, but the method counts places from the ends of a text, \
                 puts virtual tokens before it, copies it or draws random numbers for it; leave \
                 `packing` out"
                    .into(),
            );
        }
        Ok(())
    }

    /// A record of this trial under the names that the study has for it now: they are no part of
    /// what a record is found by.
    pub fn renamed(&self, mut record: Record) -> Record {
        let info = &mut record.trial;
        info.id.clone_from(&self.id);
        info.label.clone_from(&self.label);
        info.family.clone_from(&self.family);
        record
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
                    trials.push(with_hash(trial, registry, sources));
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

#[cfg(test)]
mod tests;
