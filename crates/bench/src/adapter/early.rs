//! What early releases of AdapterHub wrote otherwise than those of today.

use peft_core::state::Tensors;
use serde_json::{Map, Value};

/// Modules by their names before and since.
const MODULES: &[(&str, &str)] = &[
    ("attention_text_task_adapters", "adapters"),
    ("attention_text_lang_adapters", "adapters"),
    ("layer_text_task_adapters", "adapters"),
    ("layer_text_lang_adapters", "adapters"),
    ("invertible_lang_adapters", "invertible_adapters"),
];

/// Tensors by the names of today.
pub(super) fn renamed(tensors: Tensors) -> Tensors {
    let today = |key: String| {
        let mut modules = MODULES.iter();
        modules
            .find(|(early, _)| key.contains(early))
            .map(|(early, since)| key.replace(early, since))
            .unwrap_or(key)
    };
    let named = tensors.into_iter().map(|(key, data)| (today(key), data));
    named.collect()
}

/// Takes the invertible adapter out of the `config` of a task adapter that has no tensors of one: early
/// releases wrote it along with every configuration.
pub(super) fn without_empty_promise(
    about: &Map<String, Value>,
    config: &mut Map<String, Value>,
    tensors: &Tensors,
) {
    let is_of_a_task = about.get("type").and_then(Value::as_str) == Some("text_task");
    let mut keys = tensors.keys();
    if is_of_a_task && !keys.any(|key| key.contains("invertible_adapters.")) {
        for key in [
            "invertible_adapter",
            "inv_adapter",
            "inv_adapter_reduction_factor",
        ] {
            config.remove(key);
        }
    }
}
