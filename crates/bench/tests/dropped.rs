//! Adapters that go without their lowest layers: they say so themselves, wherever they are used.

use std::path::{Path, PathBuf};

use bench::adapter::{self, Base, Card, Fitted, Format};
use bench::adapters::{AdapterArg, Adapters};
use bench::registry::Registry;
use bench::trial::StorageSpec;
use burn::module::Module;
use burn::tensor::{Device, TensorData};
use models::{Batch, Model, Side};
use peft_core::contract::perturbed;
use peft_core::{Adapted, Init, adapt};
use serde_json::{Value, json};

fn gpt2() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/base/gpt2")
}

fn init() -> Init {
    Init::new(3, &Device::flex().autodiff())
}

fn base() -> Model {
    models::load(&gpt2(), None, &mut init()).unwrap().model
}

/// An adapter off its start that goes without its lowest layer.
fn fitted(kind: &str, config: Value) -> Fitted {
    let (config, method) = Registry::builtin().resolve(kind, &config).unwrap();
    let model = adapt(base(), &*method, None, &mut init()).unwrap();
    let card = Card {
        kind: kind.into(),
        config,
        seed: Some(3),
        dropped_layers: 1,
        ..Card::default()
    };
    Fitted {
        model: perturbed(model, 0.3),
        method,
        card,
    }
}

fn logits(model: &Adapted<Model>) -> TensorData {
    let ids: &[u32] = &[5, 70, 20, 1, 33];
    let model = model.valid();
    let positions = model.host.positions();
    let batch = Batch::new(&[ids], 0, Side::Right, positions, &Device::flex());
    models::logits(&model, &batch).into_data()
}

#[track_caller]
fn assert_near(found: &TensorData, expected: &TensorData) {
    found.assert_approx_eq::<f32>(expected, burn::tensor::Tolerance::absolute(1e-5));
}

fn read(folder: &Path) -> anyhow::Result<Fitted> {
    adapter::open(folder)?.fit(&Base::new(base()), &Registry::builtin(), &mut init())
}

fn used(folder: &Path, drop_layers: Option<usize>) -> anyhow::Result<Adapted<Model>> {
    let arg = AdapterArg {
        drop_layers,
        ..folder.to_str().unwrap().parse()?
    };
    let (registry, device) = (Registry::builtin(), Device::flex());
    let adapters = Adapters::load(&gpt2(), &StorageSpec::F32, &[arg], &registry, &device)?;
    Ok(adapters.into_only().unwrap())
}

#[test]
fn an_adapter_is_used_without_the_layers_it_drops_unless_others_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let fitted = fitted("lora", json!({"rank": 2}));
    fitted
        .write(Format::Native, &Value::Null, "a", folder.path())
        .unwrap();
    let without = logits(&fitted.model.without_layers(&[0].into()));
    assert_near(&logits(&used(folder.path(), None).unwrap()), &without);
    assert_near(
        &logits(&used(folder.path(), Some(0)).unwrap()),
        &logits(&fitted.model),
    );
    let bare = logits(&Adapted::plain(base()));
    assert_near(&logits(&used(folder.path(), Some(2)).unwrap()), &bare);
    assert_ne!(without, logits(&fitted.model));
    let error = used(folder.path(), Some(3)).err().unwrap().to_string();
    assert!(error.contains("expected at most 2"), "{error}");

    let again = read(folder.path()).unwrap();
    assert_eq!(again.card.dropped_layers, 1);
    assert_near(&logits(&again.evaluated()), &without);
    assert_near(&logits(&again.model), &logits(&fitted.model));
}

#[test]
fn what_is_written_in_other_formats_has_no_such_layers() {
    for (kind, config, format) in [
        (
            "lora",
            json!({"rank": 2, "targets": "all-linear"}),
            Format::Peft,
        ),
        ("ia3", json!({}), Format::Peft),
        ("pfeiffer", json!({"bottleneck": 3}), Format::AdapterHub),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let fitted = fitted(kind, config);
        let expected = logits(&fitted.evaluated());
        let narrowed = fitted.narrowed(&Registry::builtin()).unwrap();
        narrowed
            .write(format, &json!({}), "a", folder.path())
            .unwrap();
        assert_near(&logits(&read(folder.path()).unwrap().model), &expected);
    }
}

#[test]
fn a_method_that_cannot_leave_layers_out_is_refused_in_other_formats() {
    let error = fitted("prefix", json!({"num_virtual_tokens": 2}));
    let error = error.narrowed(&Registry::builtin()).err().unwrap();
    let error = bench::error::told(&error);
    assert!(
        error.contains("`prefix` goes without its lowest 1 layers"),
        "{error}"
    );
}

#[test]
fn a_description_that_drops_more_layers_than_there_are_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut fitted = fitted("lora", json!({"rank": 2}));
    fitted.card.dropped_layers = usize::MAX;
    fitted
        .write(Format::Native, &Value::Null, "a", folder.path())
        .unwrap();
    let error = bench::error::told(&read(folder.path()).err().unwrap());
    assert!(
        error.contains("`dropped_layers` of") && error.contains("at most 2"),
        "{error}"
    );
}

#[test]
fn a_part_of_another_method_is_an_adapter_of_all_layers() {
    let folder = tempfile::tempdir().unwrap();
    let fitted = fitted("pfeiffer", json!({"bottleneck": 2}));
    fitted
        .write(Format::Native, &Value::Null, "a", folder.path())
        .unwrap();
    let registry = Registry::builtin();
    let parts = json!({"parts": [{"adapter": folder.path()}]});
    let (_, method) = registry.resolve("stack", &parts).unwrap();
    let device = Device::flex().autodiff();
    let error = bench::parts::bring(&*method, &base(), &device).unwrap_err();
    assert!(
        bench::error::told(&error).contains("--drop-layers 0"),
        "{error:#}"
    );

    let arg = folder.path().to_str().unwrap().parse().unwrap();
    let (f32, device) = (StorageSpec::F32, Device::flex());
    let adapters = Adapters::load(&gpt2(), &f32, &[arg], &registry, &device).unwrap();
    let error = adapters.composed("stack", &registry).err().unwrap();
    assert!(
        bench::error::told(&error).contains("--drop-layers 0"),
        "{error:#}"
    );
}
