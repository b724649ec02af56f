//! Adapters of HF PEFT and AdapterHub: read, computed with, written back, trained on.
//!
//! The cases are small folders made by the Python libraries: those beside this file, and any other
//! run of a generator whose folder the variable `PEFT_GOLDEN` names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bench::adapter::{self, Base, Fitted, Format};
use bench::registry::Registry;
use bench::trial::StorageSpec;
use burn::module::Module;
use burn::tensor::{Device, TensorData};
use models::{Batch, Model};
use peft_core::state::{self, Tensors};
use peft_core::{Adapted, Init};
use serde_json::Value;

#[path = "interop/early.rs"]
mod early;

fn json(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap()
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.clone().convert::<f32>().try_to_vec().unwrap()
}

fn largest_difference(a: &TensorData, b: &TensorData) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let pairs = floats(a).into_iter().zip(floats(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Folders of cases: the repository's own, and those `PEFT_GOLDEN` names.
fn roots() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    let given = std::env::var_os("PEFT_GOLDEN").map(PathBuf::from);
    let roots: Vec<_> = [own].into_iter().chain(given).collect();
    assert!(roots[0].is_dir());
    roots
}

/// The folders of cases below `kind` (`peft`, `adapterhub`, `train`) in every root.
fn cases(kind: &str) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for root in roots() {
        let Ok(entries) = std::fs::read_dir(root.join(kind)) else {
            continue;
        };
        for entry in entries {
            let folder = entry.unwrap().path();
            if folder.join("case.json").exists() {
                found.push((root.clone(), folder));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no cases of {kind}");
    found
}

struct Case {
    folder: PathBuf,
    base: PathBuf,
}

impl Case {
    fn new((root, folder): (PathBuf, PathBuf)) -> Self {
        let about = json(&folder.join("case.json"));
        let base = root.join(about["base_dir"].as_str().unwrap());
        Self { folder, base }
    }

    fn name(&self) -> String {
        let kind = self.folder.parent().unwrap().file_name().unwrap();
        let name = self.folder.file_name().unwrap();
        format!("{}/{}", kind.to_string_lossy(), name.to_string_lossy())
    }

    fn fit(&self, adapter: &Path, storage: &StorageSpec) -> anyhow::Result<Fitted> {
        let mut init = Init::new(0, &Device::flex().autodiff());
        let opened = adapter::open(adapter)?;
        let model = models::load(&self.base, opened.classes(), &mut init)?.model;
        opened.fit(
            &Base::stored(model, storage)?,
            &Registry::builtin(),
            &mut init,
        )
    }

    /// The logits at the recorded positions; of parts side by side, one behind the other, as the
    /// library gives them.
    fn logits(&self, model: &Adapted<Model>, expected: &Tensors) -> TensorData {
        let inputs = state::load(&self.base.join("inputs.safetensors")).unwrap();
        let ids: Vec<i64> = inputs["input_ids"]
            .clone()
            .convert::<i64>()
            .try_to_vec()
            .unwrap();
        let rows = inputs["input_ids"].shape()[0];
        let ids = ids.into_iter().map(|id| id as u32).collect();
        let mask = floats(&inputs["attention_mask"]);
        let positions = model.host.positions();
        let batch = Batch::from_parts(ids, mask, rows, positions, &Device::flex());
        let logits = models::logits_of_copies(model, &batch);
        let Some(kept) = expected.get("positions") else {
            return match model.host.is_causal() {
                true => logits.into_data(),
                false => logits.squeeze_dim::<2>(1).into_data(),
            };
        };
        let kept: Vec<i64> = kept.clone().convert::<i64>().try_to_vec().unwrap();
        let column = |at: &i64| logits.clone().narrow(1, *at as usize, 1);
        burn::tensor::Tensor::cat(kept.iter().map(column).collect(), 1).into_data()
    }

    /// Checks the logits of an adapter folder against the recorded ones.
    fn check(&self, adapter: &Path) -> Fitted {
        let expected = state::load(&self.folder.join("expected.safetensors")).unwrap();
        let fitted = self
            .fit(adapter, &StorageSpec::F32)
            .unwrap_or_else(|e| panic!("{}: {e:#}", self.name()));
        let logits = self.logits(&fitted.model.valid(), &expected);
        let error = largest_difference(&logits, &expected["logits"]);
        assert!(error < 1e-4, "{}: logits differ by {error}", self.name());
        fitted
    }
}

#[test]
fn adapters_of_peft_give_the_logits_they_give_in_python() {
    for case in cases("peft").into_iter().map(Case::new) {
        case.check(&case.folder.join("adapter"));
    }
}

/// A folder of several adapters as Python's `save_adapter_setup` writes it: for cases that were
/// recorded adapter by adapter, with the file that says how they are composed.
fn as_setup(case: &Case, adapters: &Path, out: &Path) -> PathBuf {
    let about = json(&case.folder.join("case.json"));
    if about["composition"] != "stack" || adapters.join("adapter_setup.json").exists() {
        return adapters.into();
    }
    let folder = out.join(case.name()).join(adapters.file_name().unwrap());
    let names = about["adapter_names"].as_array().unwrap();
    for name in names {
        let name = name.as_str().unwrap();
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for entry in std::fs::read_dir(adapters.join(name)).unwrap() {
            let file = entry.unwrap();
            std::fs::copy(file.path(), folder.join(name).join(file.file_name())).unwrap();
        }
    }
    let single = |name: &Value| serde_json::json!({"type": "single", "children": [name]});
    let children: Vec<_> = names.iter().map(single).collect();
    let setup = serde_json::json!({"adapter_setup": {"type": "Stack", "children": children}});
    std::fs::write(folder.join("adapter_setup.json"), setup.to_string()).unwrap();
    folder
}

#[test]
fn adapters_of_adapterhub_give_the_logits_they_give_in_python() {
    let out = tempfile::tempdir().unwrap();
    for case in cases("adapterhub").into_iter().map(Case::new) {
        let (adapter, pickled) = (case.folder.join("adapter"), case.folder.join("adapter_bin"));
        case.check(&as_setup(&case, &pickled, out.path()));
        // The library cannot write its prefixes as safetensors.
        if adapter.exists() {
            case.check(&as_setup(&case, &adapter, out.path()));
        } else {
            let has_prefix = ["prefix", "mam", "unipelt"];
            let has_prefix = has_prefix.iter().any(|kind| case.name().contains(kind));
            assert!(has_prefix, "{}", case.name());
        }
    }
}

/// Whether the adapter is written as plain LoRA, with other tensors than it was read from.
fn is_split(fitted: &Fitted) -> bool {
    ["pissa", "olora"].contains(&fitted.card.kind.as_str())
}

/// Whether a case is one of several adapters, a folder each.
fn is_a_setup(case: &Case) -> bool {
    !case.folder.join("adapter_bin/adapter_config.json").exists()
}

#[test]
fn setups_of_several_adapters_are_written_as_they_were_read_and_survive_our_own_format() {
    let out = tempfile::tempdir().unwrap();
    let setups = cases("adapterhub").into_iter().map(Case::new);
    let setups: Vec<_> = setups.filter(is_a_setup).collect();
    assert!(!setups.is_empty());
    for case in setups {
        let source = as_setup(&case, &case.folder.join("adapter"), out.path());
        let fitted = case.fit(&source, &StorageSpec::F32).unwrap();
        let native = out.path().join(case.name()).join("native");
        fitted
            .write(Format::Native, &Value::Null, "x", &native)
            .unwrap();
        // What is written after a way through our own format has not lost anything on it.
        let fitted = case.check(&native);
        let folder = out.path().join(case.name()).join("again");
        let config = json(&case.base.join("config.json"));
        fitted
            .write(Format::AdapterHub, &config, "again", &folder)
            .unwrap();
        case.check(&folder);
        let (ours, theirs) = (tensors_below(&folder), tensors_below(&source));
        // A language model's head is the base's, though the library saves it.
        for (key, data) in theirs.iter().filter(|(key, _)| !key.contains("lm_head")) {
            let again = ours.get(&renamed(key, "again"));
            assert_eq!(again, Some(data), "{} `{key}`", case.name());
        }
        let of_adapters = |tensors: &Tensors| {
            let keys = tensors.keys();
            let is_head = |key: &String| key.contains("classifier") || key.contains("lm_head");
            keys.filter(|key| !is_head(key)).count()
        };
        assert_eq!(of_adapters(&ours), of_adapters(&theirs), "{}", case.name());
    }
}

/// The tensors of all safetensors files in the folders below this one.
fn tensors_below(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tensors.extend(tensors_below(&path));
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            tensors.extend(state::load(&path).unwrap());
        }
    }
    tensors
}

#[test]
fn what_is_written_back_holds_the_same_tensors_and_reads_the_same() {
    let out = tempfile::tempdir().unwrap();
    let kinds = [
        ("peft", Format::Peft, "adapter_model.safetensors"),
        ("adapterhub", Format::AdapterHub, "adapter.safetensors"),
    ];
    for (kind, format, file) in kinds {
        for case in cases(kind).into_iter().map(Case::new) {
            let adapter = case.folder.join("adapter");
            if !adapter.join(file).exists() {
                continue;
            }
            let fitted = case.fit(&adapter, &StorageSpec::F32).unwrap();
            let config = json(&case.base.join("config.json"));
            let folder = out.path().join(case.name());
            fitted.write(format, &config, "golden", &folder).unwrap();
            case.check(&folder);
            if is_split(&fitted) {
                continue;
            }
            let (ours, theirs) = (
                state::load(&folder.join(file)).unwrap(),
                state::load(&adapter.join(file)).unwrap(),
            );
            for (key, data) in &ours {
                let Some(original) = theirs.get(key) else {
                    // The head, where the original left it to the base.
                    assert!(key.contains("classifier"), "{}: `{key}`", case.name());
                    continue;
                };
                assert_eq!(data, original, "{}: `{key}`", case.name());
            }
            let copies = [
                "modules_to_save",
                "original_module",
                "embed_tokens.base_layer",
            ];
            // What the layers share stands in every layer again.
            let repeats = |key: &str| {
                let (module, leaf) = key.rsplit_once('.').unwrap();
                module != "base_model" && ours.contains_key(&format!("base_model.{leaf}"))
            };
            let lost: Vec<_> = theirs
                .keys()
                .filter(|key| !ours.contains_key(*key) && !repeats(key))
                .filter(|key| !copies.iter().any(|copy| key.contains(copy)))
                .collect();
            assert!(lost.is_empty(), "{}: {lost:?} are lost", case.name());
        }
    }
}

#[test]
fn an_adapter_of_theirs_survives_our_own_format() {
    let out = tempfile::tempdir().unwrap();
    let peft = cases("peft").into_iter().map(|case| (case, "adapter"));
    let hub = cases("adapterhub").into_iter();
    let hub = hub.map(|case| (case, "adapter_bin"));
    for (case, adapter) in peft.chain(hub) {
        let case = Case::new(case);
        if adapter == "adapter_bin" && is_a_setup(&case) {
            continue; // They have a test of their own.
        }
        let fitted = case
            .fit(&case.folder.join(adapter), &StorageSpec::F32)
            .unwrap();
        let folder = out.path().join(case.name());
        fitted
            .write(Format::Native, &Value::Null, "x", &folder)
            .unwrap();
        case.check(&folder);
    }
}

#[test]
fn merged_models_equal_what_peft_merges_tensor_by_tensor() {
    let mut merged = BTreeSet::new();
    for case in cases("peft").into_iter().map(Case::new) {
        let expected = case.folder.join("merged/model.safetensors");
        if !expected.exists() {
            continue;
        }
        let fitted = case
            .fit(&case.folder.join("adapter"), &StorageSpec::F32)
            .unwrap();
        let ours = fitted.model.valid().merge().unwrap().export();
        for (key, theirs) in state::load(&expected).unwrap() {
            let error = largest_difference(&ours[&key], &theirs);
            assert!(error < 1e-5, "{} `{key}`: {error}", case.name());
        }
        merged.insert(case.name());
    }
    assert!(!merged.is_empty());
}

#[test]
fn a_look_at_the_data_finds_the_start_that_peft_finds() {
    let out = tempfile::tempdir().unwrap();
    let (registry, device) = (Registry::builtin(), Device::flex().autodiff());
    for case in cases("look").into_iter().map(Case::new) {
        let kind = case.name().split(['-', '_']).nth(1).unwrap().to_string();
        let about = json(&case.folder.join("case.json"));
        let method = registry.parse(&kind, &about["method"]).unwrap();
        let start = case.folder.join("start");
        let classes = adapter::open(&start).unwrap().classes();
        let mut init = Init::new(0, &device);
        let base = models::load(&case.base, classes, &mut init).unwrap().model;
        let plain = Adapted::plain(base.clone());
        let batches = case.folder.join("batches.safetensors");
        let batches = bench::fixed::read(&batches, &plain, &device).unwrap();
        let storage = StorageSpec::F32;
        let looked = bench::look::look(&base, &*method, &storage, batches, (0, &device));
        let looked = looked.unwrap().expect("it looks at data");
        let fitted = Fitted {
            model: peft_core::adapt(base, &*looked.method, None, &mut init).unwrap(),
            method: looked.method,
            card: adapter::Card {
                kind,
                config: looked.config,
                storage,
                seed: Some(0),
                heads: bench::heads::Heads::default(),
                dropped_layers: 0,
            },
        };
        let (folder, config) = (out.path().join(case.name()), case.base.join("config.json"));
        fitted
            .write(Format::Peft, &json(&config), "x", &folder)
            .unwrap();
        check_start(&case, &folder, &start);
    }
}

/// Checks the ranks, the scalings and the tensors of an adapter against another.
fn check_start(case: &Case, ours: &Path, theirs: &Path) {
    let file = "adapter_config.json";
    let (our_config, their_config) = (json(&ours.join(file)), json(&theirs.join(file)));
    for key in ["r", "rank_pattern", "alpha_pattern", "use_rslora"] {
        let (ours, theirs) = (&our_config[key], &their_config[key]);
        let same = ours == theirs
            || ours
                .as_object()
                .zip(theirs.as_object())
                .is_some_and(|(a, b)| {
                    let number = |(key, value): (&String, &Value)| (key.clone(), value.as_f64());
                    let numbers = |map: &serde_json::Map<_, _>| -> BTreeSet<String> {
                        map.iter()
                            .map(|entry| format!("{:?}", number(entry)))
                            .collect()
                    };
                    numbers(a) == numbers(b)
                });
        assert!(same, "{} `{key}`: {ours}, there {theirs}", case.name());
    }
    let file = "adapter_model.safetensors";
    let (ours, theirs) = (
        state::load(&ours.join(file)).unwrap(),
        state::load(&theirs.join(file)).unwrap(),
    );
    let of_layers = |tensors: &Tensors| -> BTreeSet<String> {
        let keys = tensors.keys();
        keys.filter(|key| key.contains(".lora_")).cloned().collect()
    };
    assert_eq!(of_layers(&ours), of_layers(&theirs), "{}", case.name());
    let whitened = json(&case.folder.join("case.json"))["method"]["whiten"] == true;
    for key in of_layers(&theirs) {
        let (ours, theirs) = (&ours[&key], &theirs[&key]);
        let at = || format!("{} `{key}`", case.name());
        if key.contains("lora_B") {
            assert_eq!(ours, theirs, "{}", at());
            continue;
        }
        assert_eq!(ours.shape(), theirs.shape(), "{}", at());
        let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        let (ours, theirs, width) = (floats(ours), floats(theirs), ours.shape()[1]);
        let factor = match whitened {
            // The library counts a batch once more each time it looks whether anything still moves:
            // its singular values, the roots of which whiten, grow by one factor.
            true => length(&theirs) / length(&ours),
            false => 1.0,
        };
        for (ours, theirs) in ours.chunks(width).zip(theirs.chunks(width)) {
            let lengths = length(ours) * factor / length(theirs);
            assert!((lengths - 1.0).abs() < 0.02, "{}: {lengths}", at());
            let product: f32 = ours.iter().zip(theirs).map(|(a, b)| a * b).sum();
            let cosine = product / length(ours) / length(theirs);
            // It searches at random, and among few directions: 0.99 is where it says they agree.
            assert!(cosine > 0.99, "{}: {cosine}", at());
        }
    }
}

/// A training case's losses and final weights, reproduced from its start.
fn check_training(case: &Case, fitted: Fitted) -> (Adapted<Model>, Tensors) {
    let about = json(&case.folder.join("case.json"));
    let rate = about["optimizer"]["lr"].as_f64().unwrap();
    let expected = state::load(&case.folder.join("expected.safetensors")).unwrap();
    let device = Device::flex().autodiff();
    let file = case.folder.join("batches.safetensors");
    let batches = bench::fixed::read(&file, &fitted.model, &device).unwrap();
    let (model, method) = (fitted.model, &*fitted.method);
    let steps = bench::fixed::Steps {
        rate,
        weight_decay: 0.01,
        checkpointing: false,
    };
    let (model, losses) = bench::fixed::train(model, method, batches, steps).unwrap();
    let theirs = floats(&expected["losses"]);
    assert_eq!(losses.len(), theirs.len());
    for (step, (ours, theirs)) in losses.iter().zip(&theirs).enumerate() {
        let error = (ours - theirs).abs() / theirs;
        let name = case.name();
        assert!(
            error < 1e-3,
            "{name}: loss {ours} at step {step}, there {theirs}"
        );
    }
    (model, expected)
}

fn training_cases(wanted: impl Fn(&str) -> bool) -> Vec<Case> {
    let cases = cases("train").into_iter().map(Case::new);
    let cases: Vec<_> = cases.filter(|case| wanted(&case.name())).collect();
    assert!(!cases.is_empty());
    cases
}

#[test]
fn ten_steps_from_an_adapter_of_theirs_give_their_losses_and_their_adapter() {
    let out = tempfile::tempdir().unwrap();
    for case in training_cases(|name| !name.ends_with("full")) {
        let storage = match case.name().contains("qlora") {
            true => serde_json::json!({"storage": "nf4", "block_size": 64, "double_quant": true}),
            false => serde_json::json!({"storage": "f32"}),
        };
        let storage: StorageSpec = serde_json::from_value(storage).unwrap();
        let start = case.folder.join("start");
        let format = adapter::open(&start).unwrap().format();
        let fitted = case.fit(&start, &storage).unwrap();
        let (method, card) = (fitted.method.clone(), fitted.card.clone());
        let (model, _) = check_training(&case, fitted);
        let trained = Fitted {
            model,
            method,
            card,
        };
        let (folder, config) = (
            out.path().join(case.name()),
            json(&case.base.join("config.json")),
        );
        trained.write(format, &config, "golden", &folder).unwrap();
        if start.join("adapter_setup.json").exists() {
            check_final_setup(&case, &folder);
            continue;
        }
        for file in ["adapter_model", "adapter", "model_head"] {
            let file = format!("{file}.safetensors");
            let theirs = case.folder.join("final").join(&file);
            if !theirs.exists() {
                continue;
            }
            let ours = state::load(&folder.join(&file)).unwrap();
            for (key, theirs) in state::load(&theirs).unwrap() {
                let error = largest_difference(&ours[&key], &theirs);
                assert!(error < 1e-3, "{} `{key}`: {error}", case.name());
            }
        }
    }
}

/// Checks the adapters, the fusion and the head of a setup after training.
fn check_final_setup(case: &Case, folder: &Path) {
    let ours = tensors_below(folder);
    let theirs = tensors_below(&case.folder.join("final"));
    let fusions = theirs.keys().filter(|key| key.contains("value"));
    assert!(fusions.count() > 0);
    for (key, theirs) in theirs {
        if key.ends_with("key.bias") {
            // It adds the same to the scores of all adapters: its gradient is rounding noise, and
            // Adam moves it by the sign of that.
            continue;
        }
        let ours = &ours[&renamed(&key, "golden")];
        let error = largest_difference(ours, &theirs);
        assert!(error < 1e-3, "{} `{key}`: {error}", case.name());
    }
}

/// A key of a setup as it is called where the setup is written under a name.
fn renamed(key: &str, name: &str) -> String {
    let names = [("task_a", 1), ("task_b", 2)];
    let replaced = |key: String, (old, at)| key.replace(old, &format!("{name}_{at}"));
    names.into_iter().fold(key.to_string(), replaced)
}

#[test]
fn ten_steps_of_full_fine_tuning_give_their_losses_and_their_model() {
    for case in training_cases(|name| name.ends_with("full")) {
        let mut init = Init::new(0, &Device::flex().autodiff());
        let base = models::load(&case.base, None, &mut init).unwrap().model;
        let registry = Registry::builtin();
        let method = registry.parse("full", &serde_json::json!({})).unwrap();
        let model = peft_core::adapt(base, &*method, None, &mut init).unwrap();
        let card = adapter::Card {
            kind: "full".into(),
            config: serde_json::json!({}),
            storage: StorageSpec::F32,
            seed: Some(0),
            ..adapter::Card::default()
        };
        let fitted = Fitted {
            model,
            method,
            card,
        };
        let (model, _) = check_training(&case, fitted);
        let ours = model.valid().host.export();
        let theirs = state::load(&case.folder.join("final/model.safetensors")).unwrap();
        for (key, theirs) in theirs {
            let (ours, theirs) = (floats(&ours[&key]), floats(&theirs));
            let third = ours.len() / 3;
            let pairs = ours.iter().zip(&theirs).enumerate();
            for (at, (ours, theirs)) in pairs {
                // The bias of the keys has no effect: its gradient is rounding noise, and Adam
                // moves it by the sign of that.
                let of_the_keys = key.ends_with("c_attn.bias") && (third..2 * third).contains(&at);
                let error = (ours - theirs).abs();
                assert!(
                    of_the_keys || error < 1e-3,
                    "{} `{key}`[{at}]: {error}",
                    case.name()
                );
            }
        }
    }
}
