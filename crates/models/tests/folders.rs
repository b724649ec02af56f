//! Model folders read and written.

mod common;

use burn::tensor::{Device, TensorData};
use common::{copy, fixture, load};
use peft_core::{Host, Init, state};

#[test]
fn a_saved_model_loads_again_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    for name in [
        "gpt2",
        "bert",
        "roberta",
        "distilbert",
        "llama",
        "qwen2",
        "qwen3",
    ] {
        let mut init = Init::new(0, &Device::flex());
        let loaded = models::load(&fixture(name), None, &mut init).unwrap();
        models::save(&loaded.model, &loaded.config, out.path()).unwrap();
        let saved = state::load(&out.path().join("model.safetensors")).unwrap();
        assert_eq!(
            saved,
            state::load(&fixture(name).join("model.safetensors")).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn a_head_cut_loose_from_the_embeddings_is_saved_and_loads_again() {
    let out = tempfile::tempdir().unwrap();
    for name in ["gpt2", "qwen3"] {
        let mut init = Init::new(0, &Device::flex());
        let loaded = models::load(&fixture(name), None, &mut init).unwrap();
        let tied = loaded.model.geometry().base_parameters();
        let model = loaded.model.untie_head();
        let untied = model.geometry();
        assert!(untied.head_parameters() > 0, "{name}");
        assert_eq!(
            untied.base_parameters(),
            tied + untied.head_parameters(),
            "{name}"
        );
        models::save(&model, &loaded.config, out.path()).unwrap();
        let again = models::load(out.path(), None, &mut init).unwrap().model;
        assert_eq!(again.export(), model.export(), "{name}");
        assert_eq!(
            again.geometry().head_parameters(),
            untied.head_parameters(),
            "{name}"
        );
    }
}

#[test]
fn a_body_without_head_loads_with_a_new_one_and_says_so() {
    let folder = copy("bert");
    let file = folder.path().join("model.safetensors");
    let mut tensors = state::load(&file).unwrap();
    tensors.retain(|name, _| !name.starts_with("classifier"));
    let bare = |name: String| name.trim_start_matches("bert.").to_string();
    let tensors = tensors.into_iter().map(|(name, data)| (bare(name), data));
    state::save(&tensors.collect(), Default::default(), &file).unwrap();
    let mut init = Init::new(0, &Device::flex());
    let loaded = models::load(folder.path(), Some(5), &mut init).unwrap();
    assert_eq!(loaded.new_layers, ["classifier"]);
}

#[test]
fn missing_extra_and_misshapen_tensors_are_listed_together() {
    let folder = copy("gpt2");
    let file = folder.path().join("model.safetensors");
    let mut tensors = state::load(&file).unwrap();
    tensors.remove("transformer.ln_f.weight");
    let bias = TensorData::zeros::<f32, _>([5]);
    tensors.insert("transformer.ln_f.bias".into(), bias);
    tensors.insert("surprise".into(), TensorData::zeros::<f32, _>([1]));
    state::save(&tensors, Default::default(), &file).unwrap();
    let message = load(folder.path()).err().unwrap().to_string();
    for part in [
        "model.safetensors",
        "missing `transformer.ln_f.weight`",
        "`transformer.ln_f.bias` has shape [5]",
        "`surprise`",
    ] {
        assert!(message.contains(part), "{message}");
    }
}
