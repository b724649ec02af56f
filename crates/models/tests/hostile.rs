//! Damaged and hostile model folders: every one is an error that names what is wrong, no panic, and
//! no more memory than the files themselves call for.

mod common;

use burn::tensor::TensorData;
use common::{copy, fixture, load};
use peak_alloc::PeakAlloc;
use peft_core::state;
use serde_json::{Value, json};
use tempfile::TempDir;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The error that a folder gives; it names these parts.
fn assert_refused(folder: &TempDir, parts: &[&str]) {
    let error = load(folder.path()).err();
    let message = error.unwrap_or_else(|| panic!("loads, expected {parts:?}"));
    let message = message.to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

fn with_config(name: &str, key: &str, value: &Value) -> TempDir {
    let folder = copy(name);
    let file = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config[key] = value.clone();
    std::fs::write(&file, config.to_string()).unwrap();
    folder
}

fn with_tensor(tensor: &str, data: TensorData) -> TempDir {
    let folder = copy("llama");
    let file = folder.path().join("model.safetensors");
    let mut tensors = state::load(&file).unwrap();
    tensors.insert(tensor.into(), data);
    state::save(&tensors, Default::default(), &file).unwrap();
    folder
}

#[test]
fn configurations_that_make_no_sense_are_refused_by_key_and_value() {
    let huge = json!(1_000_000_000_000_u64);
    let longrope = json!({"rope_type": "longrope", "factor": 4.0});
    let mrope = json!({"rope_type": "default", "mrope_section": [1, 2]});
    let cases = [
        ("llama", "hidden_size", huge.clone()),
        ("llama", "num_hidden_layers", huge.clone()),
        ("llama", "vocab_size", json!(-1)),
        ("llama", "vocab_size", json!(1.5)),
        ("llama", "intermediate_size", Value::Null),
        ("llama", "num_attention_heads", json!(0)),
        ("llama", "num_key_value_heads", json!(3)),
        ("llama", "head_dim", json!(0)),
        ("llama", "head_dim", json!(7)),
        ("llama", "rope_theta", json!(0)),
        ("llama", "rope_theta", json!("NaN")),
        ("llama", "rope_theta", json!(1e300)),
        ("llama", "rms_norm_eps", json!(-1e-6)),
        ("llama", "rms_norm_eps", json!(1e30)),
        ("llama", "hidden_act", json!("mish")),
        ("llama", "attention_bias", json!("yes")),
        ("llama", "rope_scaling", json!("linear")),
        ("llama", "partial_rotary_factor", json!(0.5)),
        ("llama", "quantization_config", json!({"bits": 4})),
        ("mistral", "sliding_window", json!(0)),
        ("qwen3", "layer_types", json!(["full_attention"])),
        (
            "qwen3",
            "layer_types",
            json!(["full_attention", "chunked_attention"]),
        ),
        ("qwen2", "max_window_layers", json!(-3)),
        ("gpt2", "n_embd", huge.clone()),
        ("gpt2", "n_layer", huge.clone()),
        ("gpt2", "n_head", json!(0)),
        ("gpt2", "layer_norm_epsilon", json!(-1)),
        ("gpt2", "scale_attn_weights", json!(false)),
        ("bert", "num_attention_heads", json!(0)),
        ("bert", "type_vocab_size", huge),
        ("bert", "position_embedding_type", json!("relative_key")),
        ("roberta", "pad_token_id", json!(31)),
    ];
    for (name, key, value) in cases {
        // RoBERTa's padding id is refused through the positions it leaves.
        let named = if key == "pad_token_id" {
            "max_position_embeddings"
        } else {
            key
        };
        assert_refused(
            &with_config(name, key, &value),
            &["config.json", &format!("`{named}`")],
        );
    }
    let inside = [
        (longrope, "`rope_scaling.rope_type` is \"longrope\""),
        (mrope, "`rope_scaling.mrope_section`"),
        (
            json!({"type": "linear", "factor": 0.5}),
            "`rope_scaling.factor` is 0.5",
        ),
        (
            json!({"type": "dynamic"}),
            "`rope_scaling.factor` is missing",
        ),
        (
            json!({"factor": 2.0}),
            "`rope_scaling.rope_type` is missing",
        ),
    ];
    for (scaling, expected) in inside {
        assert_refused(
            &with_config("llama", "rope_scaling", &scaling),
            &["config.json", expected],
        );
    }
    let folder = with_config("llama", "rope_parameters", &json!({"rope_type": "default"}));
    assert_refused(
        &folder,
        &["`rope_scaling`", "absent beside `rope_parameters`"],
    );
    assert_refused(
        &with_config("llama", "model_type", &json!("mamba")),
        &["`mamba`", "qwen3"],
    );
}

#[test]
fn a_configuration_that_is_no_json_is_an_error_that_names_it() {
    for text in [
        "",
        "{",
        "[1, 2]",
        "{\"model_type\": \"llama\", \"rope_theta\": NaN}",
    ] {
        let folder = copy("llama");
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        assert_refused(&folder, &["config.json"]);
    }
    let folder = copy("llama");
    std::fs::write(folder.path().join("config.json"), "[".repeat(1 << 20)).unwrap();
    assert_refused(&folder, &["config.json"]);
}

#[test]
fn a_vocabulary_larger_than_the_embedding_table_is_refused_by_tensor() {
    let folder = with_config("llama", "vocab_size", &json!(41));
    let tensor = "`model.embed_tokens.weight` has shape [40, 12], expected [41, 12]";
    assert_refused(&folder, &["model.safetensors", tensor]);
}

#[test]
fn sizes_beyond_any_memory_are_refused_without_allocating_them() {
    let before = MEMORY.current_usage_as_mb();
    // Each passes as a number; together they are petabytes of weights that no file holds.
    let folder = with_config("llama", "vocab_size", &json!(16_000_000));
    let file = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for key in ["hidden_size", "intermediate_size", "head_dim"] {
        config[key] = json!(16_000_000);
    }
    config["num_hidden_layers"] = json!(4096);
    std::fs::write(&file, config.to_string()).unwrap();
    assert_refused(&folder, &["model.safetensors", "[16000000, 16000000]"]);
    let peak = MEMORY.peak_usage_as_mb();
    assert!(peak - before < 256.0, "{before} MB grew to {peak} MB");
}

#[test]
fn weights_that_are_no_finite_floats_are_refused_by_file_and_tensor() {
    let name = "model.norm.weight";
    let with = |position: usize, value: f32| {
        let mut values = vec![1.0_f32; 12];
        values[position] = value;
        with_tensor(name, TensorData::new(values, [12]))
    };
    for (position, value) in [(0, f32::NAN), (7, f32::INFINITY), (11, f32::NEG_INFINITY)] {
        let place = format!("at {position}");
        assert_refused(&with(position, value), &["model.safetensors", name, &place]);
    }
    let wide = TensorData::new(vec![1e300_f64; 12], [12]);
    assert_refused(
        &with_tensor(name, wide),
        &["model.safetensors", name, "inf"],
    );
    let whole = TensorData::new(vec![1_i64; 12], [12]);
    assert_refused(
        &with_tensor(name, whole),
        &["model.safetensors", name, "I64"],
    );
}

/// A safetensors file with this header, and this many bytes after it.
fn archive(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn damaged_safetensors_files_are_errors_that_name_the_file() {
    let intact = std::fs::read(fixture("llama").join("model.safetensors")).unwrap();
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        let entry = format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#);
        archive(&format!(r#"{{"model.norm.weight":{entry}}}"#), 48)
    };
    let mut damaged = vec![
        Vec::new(),
        u64::MAX.to_le_bytes().to_vec(),
        [&u64::MAX.to_le_bytes()[..], &intact[8..]].concat(),
        [&(1_u64 << 40).to_le_bytes()[..], &intact[8..]].concat(),
        [&intact[..], &[0; 4]].concat(),
        archive("{", 0),
        tensor("F32", "[12]", "[0,4000000000]"),
        tensor("F32", "[12]", "[48,0]"),
        tensor("F32", "[9223372036854775808,4]", "[0,48]"),
        tensor("F32", "[4294967296,4294967296,4294967296]", "[0,48]"),
        tensor("F32", "[-12]", "[0,48]"),
        tensor("F99", "[12]", "[0,48]"),
        tensor("BOOL", "[48]", "[0,48]"),
    ];
    let lengths = (0..intact.len()).step_by(intact.len() / 100);
    damaged.extend(lengths.map(|length| intact[..length].to_vec()));
    for bytes in damaged {
        let folder = copy("llama");
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        assert_refused(&folder, &["model.safetensors"]);
    }
    let folder = copy("llama");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_refused(&folder, &["model.safetensors"]);
    std::fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert_refused(&folder, &["model.safetensors", "no regular file"]);
}

const INDEX: &str = "model.safetensors.index.json";

/// The sharded folder with another shard for one tensor.
fn with_shard(tensor: &str, shard: &str) -> TempDir {
    let folder = copy("llama-sharded");
    let file = folder.path().join(INDEX);
    let mut index: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    index["weight_map"][tensor] = json!(shard);
    std::fs::write(&file, index.to_string()).unwrap();
    folder
}

#[test]
fn shards_that_lead_out_of_the_folder_are_refused_on_every_system() {
    let names = [
        "../x.safetensors",
        "..",
        ".",
        "",
        "/etc/passwd",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\x",
        "x\0.safetensors",
        "x\n",
    ];
    for name in names {
        let parts = [INDEX, name, "must be the name of a file in the same folder"];
        assert_refused(&with_shard("model.norm.weight", name), &parts);
    }
}

#[test]
fn an_index_that_its_shards_do_not_bear_out_is_refused() {
    let shard = "model-00001-of-00003.safetensors";
    let folder = with_shard("model.surprise.weight", shard);
    assert_refused(&folder, &[INDEX, "model.surprise.weight"]);
    assert_refused(
        &with_shard("model.norm.weight", "gone.safetensors"),
        &["gone.safetensors"],
    );
    let folder = with_shard("model.norm.weight", "twin.safetensors");
    std::fs::copy(
        folder.path().join(shard),
        folder.path().join("twin.safetensors"),
    )
    .unwrap();
    assert_refused(&folder, &[INDEX, "twin.safetensors", "in another shard"]);
}
