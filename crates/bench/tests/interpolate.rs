//! An adapter of several tasks that is used for a mixture of them after its training.

use std::path::{Path, PathBuf};
use std::process::Command;

use bench::adapter::{self, Card, Fitted, Format};
use bench::registry::Registry;
use bench::source;
use bench::trial::StorageSpec;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use models::{Batch, Model};
use peft_core::contract::{perturbed, relative_distance};
use peft_core::{Adapted, Init, adapt};
use serde_json::{Value, json};

fn training() -> Device {
    Device::flex().autodiff()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/base/gpt2")
}

fn base() -> Model {
    let loaded = source::load(&folder(), None, &mut Init::new(0, &training()));
    loaded.unwrap().model
}

fn write(kind: &str, config: Value, out: &Path) {
    let method = Registry::builtin().parse(kind, &config).unwrap();
    let model = adapt(base(), &*method, None, &mut Init::new(5, &training())).unwrap();
    let card = Card {
        kind: kind.into(),
        config,
        storage: StorageSpec::F32,
        seed: Some(5),
        ..Card::default()
    };
    let fitted = Fitted {
        model: perturbed(model, 0.2),
        method,
        card,
    };
    let written = fitted.write(Format::Native, &Value::Null, "x", out);
    written.unwrap();
}

/// The logits of two texts of a task, with the adapter in a folder.
fn logits(adapter: &Path, task: i64) -> TensorData {
    let loaded = adapter::load(
        base(),
        adapter,
        &Registry::builtin(),
        &mut Init::new(5, &training()),
    );
    let model: Adapted<Model> = loaded.unwrap().model.valid();
    let ids = vec![5, 70, 20, 11, 33, 8, 90, 41, 2, 17, 63, 29];
    let (device, positions) = (Device::flex(), model.host.positions());
    let mut batch = Batch::from_parts(ids, vec![1.0; 12], 2, positions, &device);
    batch.tasks = Some(Tensor::<1, Int>::from_data([task, task], &device));
    models::logits(&model, &batch).into_data()
}

fn convert(adapter: &Path, weights: &str, out: &Path) -> Result<(), String> {
    let (model, to) = (folder(), ["--to", "native", "--interpolate", weights]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft-bench"));
    command.arg("convert").arg("--model").arg(model).args(to);
    let done = command.arg("--adapter").arg(adapter).arg("--out").arg(out);
    let done = done.output().unwrap();
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(done.stderr).unwrap()),
    }
}

#[test]
fn all_the_weight_on_a_task_is_that_task_and_weights_between_are_between() {
    let out = tempfile::tempdir().unwrap();
    let [own, mixed] = ["own", "mixed"].map(|name| out.path().join(name));
    let hyper = json!({"bottleneck": 3, "tasks": 2, "task_dim": 4, "hidden": 6});
    write("hyper", hyper, &own);
    let [first, second] = [0, 1].map(|task| logits(&own, task));
    assert!(relative_distance(&first, &second) > 1e-3);
    for (weights, expected) in [("1,0", &first), ("0,1", &second)] {
        let out = out.path().join(weights);
        convert(&own, weights, &out).unwrap();
        // Whatever task the texts are of.
        for task in [0, 1] {
            let distance = relative_distance(&logits(&out, task), expected);
            assert!(distance < 1e-5, "{weights}: {distance}");
        }
    }
    convert(&own, "0.3,0.7", &mixed).unwrap();
    let mixed = logits(&mixed, 0);
    for whole in [first, second] {
        assert!(relative_distance(&mixed, &whole) > 1e-4);
    }
}

#[test]
fn weights_that_make_no_sense_and_methods_without_tasks_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let [hyper, lora, none] = ["hyper", "lora", "none"].map(|name| out.path().join(name));
    let config = json!({"bottleneck": 3, "tasks": 2, "task_dim": 4, "hidden": 6});
    write("hyper", config, &hyper);
    write("lora", json!({"rank": 2}), &lora);
    let error = convert(&hyper, "1", &none).unwrap_err();
    assert!(error.contains("`interpolate` is 1 weights"), "{error}");
    assert!(error.contains("one for each of 2 tasks"), "{error}");
    let error = convert(&lora, "1,0", &none).unwrap_err();
    assert!(error.contains("`lora` cannot mix its tasks"), "{error}");
    assert!(!none.exists());
}
