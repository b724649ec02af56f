//! What tells trials apart: the hash by which a record is found again.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tasks::chat_template::ChatTemplate;

use super::Trial;
use crate::parts;
use crate::registry::Registry;
use crate::source::hex;
use crate::study::Task;

/// Bumped when the meaning of a trial changes, so that old records are not taken for new results.
const GENERATION: u32 = 2;

/// Hashes everything that decides the result. Paths do not: the files' fingerprints stand for them.
/// What changed its meaning has a key of its own, so that other trials keep their hashes.
pub(super) fn with_hash(
    mut trial: Trial,
    registry: &Registry,
    sources: &BTreeMap<String, String>,
) -> Trial {
    let mut task = serde_json::to_value(&trial.task).expect("tasks serialise");
    forget_paths(&mut task);
    if let Some(Value::Object(tasks)) = task.get_mut("tasks") {
        tasks.values_mut().for_each(forget_paths);
    }
    let mut config = trial.config.clone();
    parts::forget_folders(&mut config);
    let mut decisive = serde_json::json!({
        "generation": GENERATION, "sources": sources, "task": task, "train": trial.train,
        "kind": trial.kind, "config": config, "storage": trial.storage,
        "learning_rate": trial.learning_rate, "seed": trial.seed, "samples": trial.samples,
        "device": trial.device,
    });
    // Tasks of classes had one head for all when there were only those with the same labels.
    if matches!(&trial.task, Task::Mixture(mixture) if mixture.is_of_classes()) {
        decisive["heads"] = "of every task".into();
    }
    let revisions = registry.revisions(&trial.kind, &config);
    if !revisions.is_empty() {
        decisive["revisions"] = serde_json::json!(revisions);
    }
    // FreeLB drew another dropout mask in each of its passes.
    if trial.train.adversarial.is_some() {
        decisive["dropout"] = "the same in all passes of a step".into();
    }
    trial.hash = hex(&Sha256::digest(decisive.to_string().as_bytes()));
    trial
}

fn forget_paths(task: &mut Value) {
    if let Some(Value::Object(data)) = task.get_mut("data") {
        ["train", "dev", "test"].iter().for_each(|split| {
            data.remove(*split);
        });
    }
    let template = task.get("chat_template").and_then(Value::as_str);
    if template.is_some_and(|name| ChatTemplate::builtins().all(|known| known != name))
        && let Some(task) = task.as_object_mut()
    {
        task.remove("chat_template");
    }
}
