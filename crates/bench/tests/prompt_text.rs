//! Virtual tokens that start from a text: the harness tokenizes it with the model's own tokenizer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use bench::execute;
use bench::progress::Silent;
use bench::registry::Registry;
use bench::source;
use bench::study::Study;
use bench::trial::{Trial, expand};
use burn::tensor::Device;
use peft_core::{Init, state};
use report::record::Status;
use serde_json::{Value, json};

const TEXT: &str = "User likes The Silent Harbour, recommend:";

fn base() -> PathBuf {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/base/quickstart");
    base.canonicalize().unwrap()
}

/// The trial of a study that starts five virtual tokens from a text, and hardly moves them.
fn trial(folder: &Path, method: &str) -> Trial {
    let rows = r#"{"prompt": "User likes", "completion": " tea"}"#;
    std::fs::write(folder.join("data.jsonl"), rows).unwrap();
    let file = folder.join("study.toml");
    let text = format!(
        r#"name = "text"
        question = "Does it start from the text?"
        model = "${{BASE}}"
        seeds = [1]
        [task]
        kind = "completion"
        data = {{ train = "data.jsonl", dev = "data.jsonl", test = "data.jsonl" }}
        prompt = "{{{{ prompt }}}}"
        completion = "{{{{ completion }}}}"
        max_length = 16
        max_new_tokens = 2
        metric = "exact_match"
        [train]
        epochs = 1
        batch_size = 1
        learning_rate = 1e-9
        [[method]]
        {method}"#
    );
    std::fs::write(&file, text).unwrap();
    let base = base().to_string_lossy().into_owned();
    let study = Study::load(&file, &BTreeMap::from([("BASE".to_string(), base)])).unwrap();
    let mut trials = expand(&study, &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
    trials.remove(0)
}

fn prompt_of(text: &str) -> String {
    format!(
        "kind = \"prompt_tuning\"\nnum_virtual_tokens = 5\nprompt_tuning_init = {{ text = \"{text}\" }}"
    )
}

/// The first ids of a text, which is repeated where it is short.
fn first_ids(text: &str) -> Vec<u32> {
    let model = source::load(&base(), None, &mut Init::new(0, &Device::flex()));
    let tokenizer = source::tokenizer(&base(), &model.unwrap().model).unwrap();
    let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    ids.iter().copied().cycle().take(5).collect()
}

#[test]
fn virtual_tokens_start_from_the_tokens_of_the_text_cut_or_repeated() {
    let table = state::load(&base().join("model.safetensors")).unwrap();
    let table = &table["transformer.wte.weight"];
    let width = table.shape()[1];
    let table: Vec<f32> = table.clone().convert::<f32>().try_to_vec().unwrap();
    for text in [TEXT, "tea"] {
        let folder = tempfile::tempdir().unwrap();
        let trial = trial(folder.path(), &prompt_of(text));
        let out = folder.path().join("adapter");
        let registry = Registry::builtin();
        let record = execute::run(&trial, &registry, Some(&out), &mut Silent).unwrap();
        assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
        let told = &record.trial.config["method"]["prompt_tuning_init"];
        assert_eq!(
            *told,
            json!({ "text": text }),
            "a trial is known by its text"
        );
        assert_eq!(record.trial.hash, trial.hash);

        let tensors = state::load(&out.join("adapter.safetensors")).unwrap();
        let (_, prompt) = tensors.into_iter().next().unwrap();
        let prompt: Vec<f32> = prompt.try_to_vec().unwrap();
        let ids = first_ids(text);
        assert_eq!(prompt.len(), ids.len() * width);
        for (row, id) in prompt.chunks(width).zip(ids) {
            let own = &table[id as usize * width..][..width];
            let far = row.iter().zip(own).map(|(a, b)| (a - b).abs());
            assert!(far.fold(0.0, f32::max) < 1e-6, "not the row of {id}");
        }
        // What is saved needs no tokenizer.
        let about = std::fs::read_to_string(out.join("adapter.json")).unwrap();
        let about: Value = serde_json::from_str(&about).unwrap();
        let ids = &about["config"]["prompt_tuning_init"]["text"];
        assert!(ids[0].is_u64(), "{ids}");
    }
}

#[test]
fn another_text_is_another_trial() {
    let folder = tempfile::tempdir().unwrap();
    let hash = |text| trial(folder.path(), &prompt_of(text)).hash;
    assert_eq!(hash(TEXT), hash(TEXT));
    assert_ne!(hash(TEXT), hash("tea"));
}

#[test]
fn a_part_of_a_composition_may_start_from_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let method = format!(
        "kind = \"stack\"\nparts = [{{ kind = \"lora\", rank = 2 }}, {{ kind = \"prompt_tuning\", \
         num_virtual_tokens = 5, prompt_tuning_init = {{ text = \"{TEXT}\" }} }}]"
    );
    let trial = trial(folder.path(), &method);
    let record = execute::run_to_record(&trial, &Registry::builtin(), &mut Silent).unwrap();
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
}

fn peft_bench(args: &[&str]) -> (bool, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_peft-bench"))
        .args(args)
        .output()
        .unwrap();
    let text = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn every_verb_that_takes_a_method_takes_a_text() {
    let (base, method) = (base(), prompt_of(TEXT));
    let base = base.to_str().unwrap();
    for of in [["--model", base], ["--shape", "distilgpt2"]] {
        let (fine, said) = peft_bench(&["params", of[0], of[1], "--method", &method, "--json"]);
        assert!(fine && said.contains("\"trainable\""), "{said}");
    }
    let folder = tempfile::tempdir().unwrap();
    trial(folder.path(), &method);
    let study = folder.path().join("study.toml");
    let variable = format!("BASE={base}");
    let study = study.to_str().unwrap();
    let (fine, said) = peft_bench(&["sweep", study, "--var", &variable, "--dry-run"]);
    assert!(fine && said.contains("1 trial"), "{said}");
    let empty = prompt_of("");
    let (fine, said) = peft_bench(&["params", "--model", base, "--method", &empty]);
    assert!(!fine && said.contains("an empty text"), "{said}");
}
