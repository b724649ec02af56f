//! Damaged and hostile adapter folders: an error, never a panic, and no absurd allocation.

use std::path::{Path, PathBuf};

use bench::adapter::{self, Base};
use bench::registry::Registry;
use burn::tensor::{Device, TensorData};
use models::Model;
use peft_core::{Init, state};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Damaged folders that are tried.
const INPUTS: u32 = 1500;

fn case(path: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    own.join(path)
}

/// Adapter folders with the bases they are for.
const ADAPTERS: [(&str, &str); 19] = [
    ("peft/gpt2-lora_patterns/adapter", "base/gpt2"),
    ("peft/gpt2-vera/adapter", "base/gpt2"),
    ("peft/gpt2-prefix_tuning/adapter", "base/gpt2"),
    ("peft/bert-lora_bias_all/adapter", "base/bert"),
    ("adapterhub/bert-houlsby_with_head/adapter", "base/bert"),
    ("adapterhub/bert-factors/adapter_bin", "base/bert"),
    ("peft/gpt2-prompt_tuning/adapter", "base/gpt2"),
    ("peft/llama-ln_tuning/adapter", "base/llama"),
    ("adapterhub/bert-compacter/adapter", "base/bert"),
    ("adapterhub/bert-houlsby_inv/adapter_bin", "base/bert"),
    ("adapterhub/roberta-loreft_tied/adapter", "base/roberta"),
    ("adapterhub/gpt2-prefix/adapter_bin", "base/gpt2"),
    ("peft/gpt2-pissa/adapter", "base/gpt2"),
    ("peft/bert-randlora/adapter", "base/bert"),
    ("peft/bert-vb_lora/adapter", "base/bert"),
    ("adapterhub/bert-fusion/adapter", "base/bert"),
    ("adapterhub/bert-stack/adapter_bin", "base/bert"),
    ("adapterhub/gpt2-mam/adapter_bin", "base/gpt2"),
    ("adapterhub/bert-unipelt/adapter_bin", "base/bert"),
];

fn init() -> Init {
    Init::new(0, &Device::flex().autodiff())
}

fn base(path: &str) -> Model {
    models::load(&case(path), None, &mut init()).unwrap().model
}

/// What is said of an adapter folder, if anything is.
fn refusal(folder: &Path, base: Model) -> Option<String> {
    let fitted = adapter::open(folder)
        .and_then(|opened| opened.fit(&Base::new(base), &Registry::builtin(), &mut init()));
    fitted.err().map(|error| format!("{error:#}"))
}

fn copy(from: &Path, to: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(from).unwrap() {
        let source = entry.unwrap().path();
        let target = to.join(source.file_name().unwrap());
        if source.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            files.extend(copy(&source, &target));
            continue;
        }
        std::fs::copy(&source, &target).unwrap();
        files.push(target);
    }
    files.sort();
    files
}

/// One way to damage a file.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    Cut(usize),
    Grow(usize),
    /// Another value in place of the n-th number of a text.
    Number(usize, &'static str),
    Remove,
}

const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "999999999999",
    "1e308",
    "18446744073709551615",
    "0.5",
    "null",
    "\"x\"",
    "[]",
];

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        any::<usize>().prop_map(Damage::Cut),
        (0usize..4096).prop_map(Damage::Grow),
        (any::<usize>(), prop::sample::select(NUMBERS))
            .prop_map(|(n, text)| Damage::Number(n, text)),
        Just(Damage::Remove),
    ]
}

fn apply(file: &Path, damage: &Damage) {
    let mut bytes = std::fs::read(file).unwrap();
    match damage {
        Damage::Byte(at, byte) => {
            // Headers are in front.
            let span = bytes.len().clamp(1, 400);
            bytes[at % span] = *byte;
        }
        Damage::Cut(at) => bytes.truncate(at % bytes.len()),
        Damage::Grow(count) => bytes.extend(std::iter::repeat_n(0u8, *count)),
        Damage::Number(nth, text) => bytes = with_number(&bytes, *nth, text),
        Damage::Remove => return std::fs::remove_file(file).unwrap(),
    }
    std::fs::write(file, bytes).unwrap();
}

fn with_number(bytes: &[u8], nth: usize, text: &str) -> Vec<u8> {
    let starts: Vec<usize> = (1..bytes.len())
        .filter(|i| bytes[*i].is_ascii_digit() && !bytes[i - 1].is_ascii_alphanumeric())
        .collect();
    let Some(start) = starts.get(nth % starts.len().max(1)).copied() else {
        return bytes.to_vec();
    };
    let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit());
    let end = start + digits.count();
    [&bytes[..start], text.as_bytes(), &bytes[end..]].concat()
}

#[test]
fn damaged_adapter_folders_are_errors_and_never_panics() {
    let bases: Vec<Model> = ADAPTERS.iter().map(|(_, path)| base(path)).collect();
    let config = Config {
        cases: INPUTS,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let mut refused = 0;
    let inputs = (0..ADAPTERS.len(), any::<usize>(), damage());
    let counted = std::cell::RefCell::new(&mut refused);
    let result = runner.run(&inputs, |(which, file, damage)| {
        let folder = tempfile::tempdir().unwrap();
        let files = copy(&case(ADAPTERS[which].0), folder.path());
        apply(&files[file % files.len()], &damage);
        if refusal(folder.path(), bases[which].clone()).is_some() {
            **counted.borrow_mut() += 1;
        }
        Ok(())
    });
    result.unwrap();
    assert!(
        refused > INPUTS / 3,
        "only {refused} were refused: the damage is none"
    );
}

#[test]
fn a_rank_the_file_cannot_fill_is_refused_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    copy(&case("peft/gpt2-lora/adapter"), folder.path());
    let config = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    for (rank, expected) in [("900000", "the file holds"), ("99999999999", "`rank` is")] {
        let forged = text.replace("\"r\": 4", &format!("\"r\": {rank}"));
        assert_ne!(forged, text);
        std::fs::write(&config, forged).unwrap();
        let error = refusal(folder.path(), base("base/gpt2")).unwrap();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_number_that_is_not_finite_is_an_error_that_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    copy(&case("peft/gpt2-lora/adapter"), folder.path());
    let file = folder.path().join("adapter_model.safetensors");
    let mut tensors = state::load(&file).unwrap();
    let data = tensors.values_mut().next().unwrap();
    let mut values: Vec<f32> = data.clone().try_to_vec().unwrap();
    values[1] = f32::NAN;
    *data = TensorData::new(values, data.shape().to_vec());
    state::save(&tensors, Default::default(), &file).unwrap();
    let error = refusal(folder.path(), base("base/gpt2")).unwrap();
    assert!(
        error.contains("not finite") && error.contains("c_attn"),
        "{error}"
    );
}
