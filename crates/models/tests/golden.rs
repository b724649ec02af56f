//! Logits and greedy generation against `transformers`; fixtures by `golden/make.py`.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};
use models::{Batch, Choice, Generation, Model};
use peft_core::{Adapted, Init, state};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn ints(data: &TensorData) -> Vec<i64> {
    data.clone().convert::<i64>().try_to_vec().unwrap()
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.clone().convert::<f32>().try_to_vec().unwrap()
}

fn load(folder: &Path, device: &Device) -> Adapted<Model> {
    let loaded = models::load(folder, None, &mut Init::new(0, device)).unwrap();
    assert!(loaded.new_layers.is_empty());
    Adapted::plain(loaded.model)
}

/// Largest difference to the recorded logits, padded rows included.
fn logits_error(folder: &Path, inputs: &Path, expected: &Path, device: &str) -> f32 {
    let device = peft_core::device(device).unwrap();
    let model = load(folder, &device);
    let inputs = state::load(inputs).unwrap();
    let ids: Vec<u32> = ints(&inputs["input_ids"])
        .iter()
        .map(|id| *id as u32)
        .collect();
    let mask = ints(&inputs["attention_mask"])
        .iter()
        .map(|m| *m as f32)
        .collect();
    let rows = inputs["input_ids"].shape().to_vec()[0];
    let batch = Batch::from_parts(ids, mask, rows, model.host.positions(), &device);
    let logits = floats(&models::logits(&model, &batch).into_data());
    let expected = floats(&state::load(expected).unwrap()["logits"]);
    assert_eq!(logits.len(), expected.len());
    logits
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn check(name: &str) {
    for device in ["cpu", "ndarray"] {
        let golden = folder(name).join("golden.safetensors");
        let error = logits_error(&folder(name), &golden, &golden, device);
        assert!(error < 1e-4, "{name} on {device}: {error}");
    }
}

#[test]
fn gpt2_logits_agree_with_transformers() {
    check("gpt2");
}

#[test]
fn bert_logits_agree_with_transformers() {
    check("bert");
}

#[test]
fn roberta_logits_agree_with_transformers() {
    check("roberta");
}

#[test]
fn distilbert_logits_agree_with_transformers() {
    check("distilbert");
}

#[test]
fn greedy_generation_agrees_with_transformers_token_for_token() {
    let device = Device::flex();
    let model = load(&folder("gpt2"), &device);
    let golden = state::load(&folder("gpt2").join("golden.safetensors")).unwrap();
    let prompt: Vec<u32> = ints(&golden["prompt"]).iter().map(|t| *t as u32).collect();
    let generation = Generation {
        max_new_tokens: 12,
        eos: Vec::new(),
        choice: Choice::Greedy,
    };
    // A shorter prompt beside it, so that the row is generated from a left-padded batch.
    let prompts: [&[u32]; 2] = [&prompt[2..], &prompt];
    let output = models::generate(&model, &prompts, &generation, &device);
    let expected: Vec<u32> = ints(&golden["output"]).iter().map(|t| *t as u32).collect();
    assert_eq!(output[1], expected[prompt.len()..]);
    assert_eq!(
        output[0],
        models::generate(&model, &prompts[..1], &generation, &device)[0]
    );
}

#[test]
fn a_saved_model_loads_again_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    for name in ["gpt2", "bert", "roberta", "distilbert"] {
        let mut init = Init::new(0, &Device::flex());
        let loaded = models::load(&folder(name), None, &mut init).unwrap();
        models::save(&loaded.model, &loaded.config, out.path()).unwrap();
        let saved = state::load(&out.path().join("model.safetensors")).unwrap();
        assert_eq!(
            saved,
            state::load(&folder(name).join("model.safetensors")).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn a_body_without_head_loads_with_a_new_one_and_says_so() {
    let out = tempfile::tempdir().unwrap();
    let mut tensors = state::load(&folder("bert").join("model.safetensors")).unwrap();
    tensors.retain(|name, _| !name.starts_with("classifier"));
    let tensors = tensors
        .into_iter()
        .map(|(n, t)| (n.trim_start_matches("bert.").to_string(), t));
    state::save(
        &tensors.collect(),
        Default::default(),
        &out.path().join("model.safetensors"),
    )
    .unwrap();
    std::fs::copy(
        folder("bert").join("config.json"),
        out.path().join("config.json"),
    )
    .unwrap();
    let loaded = models::load(out.path(), Some(5), &mut Init::new(0, &Device::flex())).unwrap();
    assert_eq!(loaded.new_layers, ["classifier"]);
}

#[test]
fn missing_extra_and_misshapen_tensors_are_listed_together() {
    let out = tempfile::tempdir().unwrap();
    let mut tensors = state::load(&folder("gpt2").join("model.safetensors")).unwrap();
    tensors.remove("transformer.ln_f.weight");
    tensors.insert(
        "transformer.ln_f.bias".into(),
        TensorData::zeros::<f32, _>([5]),
    );
    tensors.insert("surprise".into(), TensorData::zeros::<f32, _>([1]));
    state::save(
        &tensors,
        Default::default(),
        &out.path().join("model.safetensors"),
    )
    .unwrap();
    std::fs::copy(
        folder("gpt2").join("config.json"),
        out.path().join("config.json"),
    )
    .unwrap();
    let error = models::load(out.path(), None, &mut Init::new(0, &Device::flex()));
    let message = error.err().unwrap().to_string();
    for part in [
        "missing `transformer.ln_f.weight`",
        "`transformer.ln_f.bias` has shape [5]",
        "`surprise`",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder("gpt2").join("config.json"),
        out.path().join("config.json"),
    )
    .unwrap();
    let index = r#"{"weight_map": {"wte.weight": "../elsewhere.safetensors"}}"#;
    std::fs::write(out.path().join("model.safetensors.index.json"), index).unwrap();
    let error = models::load(out.path(), None, &mut Init::new(0, &Device::flex()));
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("../elsewhere.safetensors")
    );
}

/// Cases of another generator run, by a variable that names their folder; see the contributor notes.
#[test]
fn external_golden_cases_agree_where_they_are_given() {
    let Some(cases) = std::env::var_os("PEFT_GOLDEN") else {
        eprintln!("skipped: PEFT_GOLDEN names no folder of cases");
        return;
    };
    for name in ["gpt2", "bert", "roberta", "distilbert"] {
        let base = Path::new(&cases).join("base").join(name);
        let (inputs, expected) = (
            base.join("inputs.safetensors"),
            base.join("expected.safetensors"),
        );
        let error = logits_error(&base, &inputs, &expected, "cpu");
        assert!(error < 1e-4, "{name}: {error}");
    }
}
