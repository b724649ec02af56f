//! Packed model folders: written, read again, trained on.

use std::path::Path;

use bench::quantize::quantize;
use bench::source;
use burn::tensor::{Device, Tensor, TensorData};
use models::{Batch, Gpt2Config, Model};
use peft_core::contract::relative_distance;
use peft_core::{Adapted, Dense, Host, Init, Proj, Site, Storage, Surgeon, adapt, state};
use peft_lora::Lora;
use peft_qlora::{Fp4, Int8, Nf4};

const VOCAB: usize = 31;

/// Writes a small model with random weights.
fn base(folder: &Path) {
    let config = Gpt2Config::new(VOCAB, 16, 24, 2, 2);
    let model = Model::random_gpt2(config.clone(), &mut Init::new(3, &Device::flex())).unwrap();
    let mut json = serde_json::to_value(&config).unwrap();
    json["model_type"] = "gpt2".into();
    models::save(&model, &json, folder).unwrap();
    std::fs::write(folder.join("merges.txt"), "a b").unwrap();
}

fn load(folder: &Path, device: &Device) -> Model {
    source::load(folder, None, &mut Init::new(0, device))
        .unwrap()
        .model
}

fn logits(model: Adapted<Model>) -> TensorData {
    let ids: Vec<u32> = (0..20).map(|i| (i * 7 + 3) % VOCAB as u32).collect();
    let positions = model.host.positions();
    let batch = Batch::from_parts(ids, vec![1.0; 20], 2, positions, &Device::flex());
    models::logits(&model, &batch).into_data()
}

fn plain(host: Model) -> Adapted<Model> {
    Adapted::plain(host)
}

fn storages() -> [Box<dyn Storage>; 4] {
    [
        Box::new(Nf4::new(64, true)),
        Box::new(Nf4::new(32, false)),
        Box::new(Fp4::default()),
        Box::new(Int8 {}),
    ]
}

/// The model with its linear layers packed in memory.
fn packed(model: Model, storage: &dyn Storage) -> Model {
    struct Pack<'a>(&'a dyn Storage);
    impl Surgeon for Pack<'_> {
        fn projection(&mut self, site: &Site, base: Proj) -> Proj {
            let dense = base.downcast_ref::<Dense>().expect("a dense base");
            self.0.pack(site, dense.clone()).unwrap()
        }
    }
    model.rebuild(&mut Pack(storage))
}

#[test]
fn a_packed_folder_loads_as_the_base_packed_in_memory_bit_for_bit() {
    let work = tempfile::tempdir().unwrap();
    let dense = work.path().join("dense");
    base(&dense);
    for (i, storage) in storages().iter().enumerate() {
        let out = work.path().join(format!("deep/er/{i}"));
        let losses = quantize(&dense, &**storage, &out).unwrap();
        assert_eq!(losses.len(), 4, "roles of a GPT-2 block");
        assert!(losses.values().all(|loss| loss.layers == 2));
        let (model, base) = (load(&out, &Device::flex()), load(&dense, &Device::flex()));
        let numbers = |model: &Model| model.geometry().base_parameters();
        assert_eq!(numbers(&model), numbers(&base));
        assert_eq!(source::packing(&model), Some(storage.packing()));
        let found = logits(plain(model));
        assert_eq!(found, logits(plain(packed(base.clone(), &**storage))));
        let distance = relative_distance(&found, &logits(plain(base)));
        assert!(distance > 1e-5 && distance < 0.5, "{storage:?}: {distance}");
        assert_eq!(std::fs::read(out.join("merges.txt")).unwrap(), b"a b");
    }
}

#[test]
fn lora_trains_over_a_packed_folder_with_no_storage_or_the_same_and_no_other() {
    let work = tempfile::tempdir().unwrap();
    let (dense, out) = (work.path().join("dense"), work.path().join("packed"));
    base(&dense);
    quantize(&dense, &Nf4::new(64, true), &out).unwrap();
    let device = Device::flex().autodiff();
    let lora = Lora {
        rank: 2,
        ..Lora::default()
    };
    let put = |storage: Option<&dyn Storage>| {
        adapt(
            load(&out, &device),
            &lora,
            storage,
            &mut Init::new(1, &device),
        )
    };
    for storage in [None, Some(&Nf4::new(64, true) as &dyn Storage)] {
        let adapted = put(storage).unwrap();
        let geometry = load(&out, &device).geometry();
        let expected = peft_core::trained_parameters(&geometry, &lora);
        assert_eq!(state::trainable_parameters(&adapted), expected);
    }
    for storage in [&Nf4::new(32, true) as &dyn Storage, &Int8 {}] {
        let error = put(Some(storage)).unwrap_err().to_string();
        for part in [
            "`storage`",
            &storage.packing(),
            "nf4+dq in blocks of 64",
            "transformer.h.0.attn.c_attn",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn a_method_that_trains_the_base_is_refused_over_packed_weights() {
    let work = tempfile::tempdir().unwrap();
    let (dense, out) = (work.path().join("dense"), work.path().join("packed"));
    base(&dense);
    quantize(&dense, &Int8 {}, &out).unwrap();
    let device = Device::flex().autodiff();
    let full = |folder: &Path, storage: Option<&dyn Storage>| {
        let mut init = Init::new(1, &device);
        adapt(
            load(folder, &device),
            &peft_adapter::Full {},
            storage,
            &mut init,
        )
    };
    assert!(full(&dense, None).is_ok());
    for refused in [full(&out, None), full(&dense, Some(&Int8 {}))] {
        let error = refused.unwrap_err().to_string();
        let named = error.contains("`transformer.h.0.attn.c_attn.weight` is packed");
        assert!(named, "{error}");
    }
}

#[test]
fn a_packed_folder_is_not_packed_again_nor_written_over_nor_saved_as_dense() {
    let work = tempfile::tempdir().unwrap();
    let (dense, out) = (work.path().join("dense"), work.path().join("packed"));
    base(&dense);
    quantize(&dense, &Int8 {}, &out).unwrap();
    let again = quantize(&out, &Nf4::default(), &work.path().join("again")).unwrap_err();
    assert!(again.to_string().contains("is int8"), "{again}");
    assert!(!work.path().join("again").exists());
    let over = quantize(&dense, &Int8 {}, &out).unwrap_err().to_string();
    assert!(over.contains("is not empty"), "{over}");
    let left: Vec<_> = std::fs::read_dir(work.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing half written: {left:?}");
    let model = load(&out, &Device::flex());
    let saved = models::save(&model, &serde_json::json!({}), &work.path().join("saved"));
    assert!(saved.unwrap_err().to_string().contains("is packed"));
}

#[test]
fn a_damaged_packed_folder_is_an_error_that_names_folder_and_tensor() {
    let work = tempfile::tempdir().unwrap();
    let (dense, out) = (work.path().join("dense"), work.path().join("packed"));
    base(&dense);
    quantize(&dense, &Nf4::default(), &out).unwrap();
    let file = out.join("model.safetensors");
    let mut tensors = state::load(&file).unwrap();
    let name = "transformer.h.1.mlp.c_fc.weight";
    let short = Tensor::<1>::zeros([7], &Device::flex())
        .into_data()
        .convert::<u8>();
    tensors.insert(name.into(), short);
    state::save(&tensors, Default::default(), &file).unwrap();
    let loaded = source::load(&out, None, &mut Init::new(0, &Device::flex()));
    let error = format!("{:#}", loaded.err().unwrap());
    let folder = out.display().to_string();
    assert!(error.contains(name) && error.contains(&folder), "{error}");
    assert_eq!(error.lines().count(), 2, "no other complaint: {error}");
}

#[test]
fn the_configuration_of_a_packed_folder_names_what_stays_dense() {
    let work = tempfile::tempdir().unwrap();
    let (dense, out) = (work.path().join("dense"), work.path().join("packed"));
    base(&dense);
    quantize(&dense, &Fp4::new(64, false), &out).unwrap();
    let text = std::fs::read_to_string(out.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let quantization = &config["quantization_config"];
    assert_eq!(
        quantization["llm_int8_skip_modules"],
        serde_json::json!(["lm_head"])
    );
    assert_eq!(quantization["bnb_4bit_quant_type"], "fp4");
    assert_eq!(config["n_embd"], 24);
}
