//! Folders as AdapterHub's first releases wrote them: those of today with the names and the keys of
//! then, which compute the same.

use super::*;

/// The keys a configuration of the first releases had.
const KEYS: &[&str] = &[
    "adapter_residual_before_ln",
    "ln_after",
    "ln_before",
    "mh_adapter",
    "non_linearity",
    "original_ln_after",
    "original_ln_before",
    "output_adapter",
    "reduction_factor",
    "residual_before_ln",
];

/// The adapter of a case as an early release would have written it.
fn as_then(case: &Case, kind: &str, out: &Path) -> PathBuf {
    let source = case.folder.join("adapter");
    let mut about = json(&source.join("adapter_config.json"));
    let config = about["config"].as_object_mut().unwrap();
    let factor = config["inv_adapter_reduction_factor"].clone();
    let invertible = match &config["inv_adapter"] {
        Value::Null => Value::Null,
        block => serde_json::json!({
            "block_type": block, "non_linearity": "relu", "reduction_factor": factor
        }),
    };
    config.retain(|key, _| KEYS.contains(&&**key));
    config.insert("invertible_adapter".into(), invertible);
    config.insert("attention_type".into(), "sent-lvl-dynamic".into());
    config.insert("new_attention_norm".into(), false.into());
    about["type"] = format!("text_{kind}").into();
    std::fs::create_dir_all(out).unwrap();
    std::fs::write(out.join("adapter_config.json"), about.to_string()).unwrap();
    let then = |key: &str| {
        let invertible = key.replace("invertible_adapters", "invertible_lang_adapters");
        let place = match key.contains("attention") {
            true => format!("attention_text_{kind}_adapters"),
            false => format!("layer_text_{kind}_adapters"),
        };
        invertible.replace(".adapters.", &format!(".{place}."))
    };
    let tensors = state::load(&source.join("adapter.safetensors")).unwrap();
    let named = tensors.into_iter().map(|(key, data)| (then(&key), data));
    let file = out.join("adapter.safetensors");
    state::save(&named.collect(), Default::default(), &file).unwrap();
    out.into()
}

#[test]
fn adapters_of_the_first_releases_compute_what_they_did() {
    let out = tempfile::tempdir().unwrap();
    for (name, kind) in [
        ("bert-pfeiffer", "task"),
        ("roberta-pfeiffer", "task"),
        ("gpt2-houlsby", "task"),
        ("roberta-pfeiffer_inv", "lang"),
    ] {
        let root = roots().swap_remove(0);
        let case = Case::new((root.clone(), root.join("adapterhub").join(name)));
        case.check(&as_then(&case, kind, &out.path().join(name)));
    }
}

#[test]
fn an_invertible_adapter_that_a_task_adapter_only_speaks_of_is_left_out() {
    let out = tempfile::tempdir().unwrap();
    let root = roots().swap_remove(0);
    let case = Case::new((root.clone(), root.join("adapterhub/bert-pfeiffer")));
    let folder = as_then(&case, "task", out.path());
    let file = folder.join("adapter_config.json");
    let mut about = json(&file);
    about["config"]["invertible_adapter"] =
        serde_json::json!({"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2});
    std::fs::write(&file, about.to_string()).unwrap();
    case.check(&folder);
}
