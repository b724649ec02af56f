//! Logits and greedy generation against `transformers`; fixtures by `golden/make.py`.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};
use models::{Batch, Choice, Generation, Model, Side};
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
fn llama_logits_with_llama3_frequencies_agree_with_transformers() {
    check("llama");
}

#[test]
fn logits_of_a_sharded_llama_with_biases_and_dynamic_frequencies_agree_with_transformers() {
    check("llama-sharded");
}

#[test]
fn mistral_logits_with_a_window_shorter_than_the_text_agree_with_transformers() {
    check("mistral");
}

#[test]
fn qwen2_logits_with_yarn_frequencies_agree_with_transformers() {
    check("qwen2");
}

#[test]
fn qwen3_logits_of_a_bfloat16_file_with_a_window_in_one_layer_agree_with_transformers() {
    check("qwen3");
}

/// The models that continue texts.
const DECODERS: [&str; 6] = [
    "gpt2",
    "llama",
    "llama-sharded",
    "mistral",
    "qwen2",
    "qwen3",
];

#[test]
fn greedy_generation_agrees_with_transformers_token_for_token() {
    for name in DECODERS {
        greedy_generation_agrees(name);
    }
}

fn greedy_generation_agrees(name: &str) {
    let device = Device::flex();
    let model = load(&folder(name), &device);
    let golden = state::load(&folder(name).join("golden.safetensors")).unwrap();
    let prompt: Vec<u32> = ints(&golden["prompt"]).iter().map(|t| *t as u32).collect();
    let generation = Generation {
        task: 0,
        max_new_tokens: 12,
        eos: Vec::new(),
        choice: Choice::Greedy,
    };
    // A shorter prompt beside it, so that the row is generated from a left-padded batch.
    let prompts: [&[u32]; 2] = [&prompt[2..], &prompt];
    let output = models::generate(&model, &prompts, &generation, &device);
    let expected: Vec<u32> = ints(&golden["output"]).iter().map(|t| *t as u32).collect();
    assert_eq!(output[1], expected[prompt.len()..], "{name}");
    assert_eq!(
        output[0],
        models::generate(&model, &prompts[..1], &generation, &device)[0],
        "{name}"
    );
}

#[test]
fn the_keys_of_newer_configurations_mean_the_same() {
    let out = tempfile::tempdir().unwrap();
    let from = folder("llama");
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let table = config.as_object_mut().unwrap();
    let mut rope = table.remove("rope_scaling").unwrap();
    rope["rope_theta"] = table.remove("rope_theta").unwrap();
    table.insert("rope_parameters".into(), rope);
    // Which is not the one that counts.
    table.insert("rope_theta".into(), serde_json::json!(123.0));
    std::fs::write(out.path().join("config.json"), config.to_string()).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(from.join(weights), out.path().join(weights)).unwrap();
    let golden = from.join("golden.safetensors");
    let error = logits_error(out.path(), &golden, &golden, "cpu");
    assert!(error < 1e-4, "{error}");
}

#[test]
fn generation_with_a_cache_equals_generation_without() {
    let device = Device::flex();
    // Dynamic frequencies change with the length, so that cached keys keep those of their time.
    for name in DECODERS.into_iter().filter(|name| *name != "llama-sharded") {
        let model = load(&folder(name), &device);
        let mut text: Vec<u32> = vec![5, 9, 33, 8, 21];
        let generation = Generation {
            task: 0,
            max_new_tokens: 15,
            eos: Vec::new(),
            choice: Choice::Greedy,
        };
        let cached = models::generate(&model, &[&text], &generation, &device);
        for _ in 0..generation.max_new_tokens {
            let rows: [&[u32]; 1] = [&text];
            let batch = Batch::new(&rows, 0, Side::Right, model.host.positions(), &device);
            let logits = models::logits(&model, &batch);
            let [_, length, _] = logits.dims();
            let next = logits
                .narrow(1, length - 1, 1)
                .argmax(2)
                .into_scalar::<i64>();
            text.push(next as u32);
        }
        assert_eq!(cached[0], text[5..], "{name}");
    }
}

/// Cases of another generator run, by a variable that names their folder; see the contributor notes.
#[test]
fn external_golden_cases_agree_where_they_are_given() {
    let Some(cases) = std::env::var_os("PEFT_GOLDEN") else {
        eprintln!("skipped: PEFT_GOLDEN names no folder of cases");
        return;
    };
    let encoders = ["gpt2", "bert", "roberta", "distilbert"];
    let decoders = ["llama", "llama-sharded", "mistral", "qwen2", "qwen3"];
    for name in encoders.into_iter().chain(decoders) {
        let base = Path::new(&cases).join("base").join(name);
        let (inputs, expected) = (
            base.join("inputs.safetensors"),
            base.join("expected.safetensors"),
        );
        let error = logits_error(&base, &inputs, &expected, "cpu");
        assert!(error < 1e-4, "{name}: {error}");
    }
    for name in ["gpt2", "llama"] {
        let base = Path::new(&cases).join("base").join(name);
        let expected = Path::new(&cases).join("generate").join(name);
        external_generation_agrees(&base, &expected.join("expected.safetensors"));
    }
}

/// Every recorded prompt of a folder, continued.
fn external_generation_agrees(base: &Path, expected: &Path) {
    let device = Device::flex();
    let model = load(base, &device);
    let expected = state::load(expected).unwrap();
    let prompts = expected
        .iter()
        .filter(|(name, _)| name.starts_with("prompt"));
    let mut seen = 0;
    for (name, prompt) in prompts {
        let prompt: Vec<u32> = ints(prompt).iter().map(|t| *t as u32).collect();
        let output = &expected[&name.replace("prompt", "output")];
        let output: Vec<u32> = ints(output).iter().map(|t| *t as u32).collect();
        let generation = Generation {
            task: 0,
            max_new_tokens: output.len() - prompt.len(),
            eos: Vec::new(),
            choice: Choice::Greedy,
        };
        let text = models::generate(&model, &[&prompt], &generation, &device);
        assert_eq!(
            text[0],
            output[prompt.len()..],
            "{name} of {}",
            base.display()
        );
        seen += 1;
    }
    assert!(seen > 0, "{} holds no prompts", base.display());
}
