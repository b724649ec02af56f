//! Methods made of others, over trained adapters: each part computes what it computes alone.

use std::path::{Path, PathBuf};

use bench::adapter::{self, Card, Fitted, Format};
use bench::adapters::{AdapterArg, Adapters};
use bench::registry::Registry;
use bench::trial::StorageSpec;
use bench::{parts, source};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use models::{Batch, Model};
use peft_core::contract::{perturbed, relative_distance};
use peft_core::{Adapted, Init, adapt, state};
use serde_json::{Value, json};

#[path = "compose/apart.rs"]
mod apart;
#[path = "compose/places.rs"]
mod places;

fn training() -> Device {
    Device::flex().autodiff()
}

/// The folder of a small base.
fn folder_of(name: &str) -> PathBuf {
    let bases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/base");
    bases.join(name)
}

fn gpt2() -> Model {
    let mut init = Init::new(0, &training());
    let loaded = source::load(&folder_of("gpt2"), None, &mut init);
    loaded.unwrap().model
}

fn config_of(value: &Value) -> (String, Value) {
    let mut config = value.clone();
    let kind = config.as_object_mut().unwrap().remove("kind").unwrap();
    (kind.as_str().unwrap().into(), config)
}

/// A method in a base, the values of its trained parts in place.
fn fitted(base: Model, method: &Value) -> anyhow::Result<Fitted> {
    let registry = Registry::builtin();
    let (kind, config) = config_of(method);
    let (config, method) = registry.resolve(&kind, &config)?;
    parts::bring(&*method, &base, &training())?;
    let model = adapt(base, &*method, None, &mut Init::new(5, &training()))?;
    let card = Card {
        kind,
        config,
        storage: StorageSpec::F32,
        seed: Some(5),
        ..Card::default()
    };
    Ok(Fitted {
        model,
        method,
        card,
    })
}

fn model(base: Model, method: Value) -> Adapted<Model> {
    let fitted = fitted(base, &method).unwrap_or_else(|e| panic!("{method}: {e:#}"));
    fitted.model.valid()
}

/// Writes an adapter whose every value moved from its start; returns it and its folder.
fn trained(folder: &Path, name: &str, base: Model, method: Value) -> (Adapted<Model>, PathBuf) {
    let mut fitted = fitted(base, &method).unwrap();
    fitted.model = perturbed(fitted.model, 0.2);
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let written = fitted.write(Format::Native, &Value::Null, name, &folder);
    written.unwrap();
    (fitted.model.valid(), folder)
}

fn logits(model: &Adapted<Model>, tasks: Option<[i64; 2]>) -> TensorData {
    models::logits(model, &texts(model, tasks)).into_data()
}

fn texts(model: &Adapted<Model>, tasks: Option<[i64; 2]>) -> Batch {
    let ids = vec![5, 70, 20, 11, 33, 8, 90, 41, 2, 17, 63, 29];
    let device = Device::flex();
    let positions = model.host.positions();
    let mut batch = Batch::from_parts(ids, vec![1.0; 12], 2, positions, &device);
    batch.tasks = tasks.map(|tasks| Tensor::<1, Int>::from_data(tasks, &device));
    batch
}

/// The logits of one row, at its tokens from `from` to below `to`.
fn part_of(logits: &TensorData, row: usize, from: usize, to: usize) -> TensorData {
    let all: Tensor<3> = Tensor::from_data(logits.clone(), &Device::flex());
    all.narrow(0, row, 1).narrow(1, from, to - from).into_data()
}

fn assert_same(a: &TensorData, b: &TensorData) {
    let distance = relative_distance(a, b);
    assert!(distance < 1e-5, "{distance} apart");
}

fn assert_different(a: &TensorData, b: &TensorData) {
    let distance = relative_distance(a, b);
    assert!(distance > 1e-3, "{distance} apart");
}

/// Two trained adapters and their folders.
fn two(folder: &Path, methods: [Value; 2]) -> [(TensorData, PathBuf); 2] {
    let mut names = ["a", "b"].into_iter();
    methods.map(|method| {
        let name = names.next().unwrap();
        let (model, folder) = trained(folder, name, gpt2(), method);
        (logits(&model, None), folder)
    })
}

fn bottlenecks(folder: &Path) -> [(TensorData, PathBuf); 2] {
    two(
        folder,
        [
            json!({"kind": "pfeiffer", "bottleneck": 4}),
            json!({"kind": "houlsby", "bottleneck": 3}),
        ],
    )
}

#[test]
fn a_split_computes_at_every_token_what_the_tokens_part_computes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [(a, dir_a), (b, dir_b)] = bottlenecks(folder.path());
    let split = |splits: usize| {
        let parts = json!([{"adapter": dir_a}, {"adapter": dir_b}]);
        let method = json!({"kind": "split", "parts": parts, "splits": [splits]});
        logits(&model(gpt2(), method), None)
    };
    assert_different(&a, &b);
    let halves = split(3);
    assert_same(&part_of(&halves, 1, 0, 3), &part_of(&a, 1, 0, 3));
    assert_different(&part_of(&halves, 1, 3, 6), &part_of(&a, 1, 3, 6));
    assert_same(&split(6), &a);
}

#[test]
fn a_batch_split_gives_every_row_to_the_part_of_its_task() {
    let folder = tempfile::tempdir().unwrap();
    let [(a, dir_a), (b, dir_b)] = bottlenecks(folder.path());
    let parts = json!([{"adapter": dir_a}, {"adapter": dir_b}]);
    let model = model(gpt2(), json!({"kind": "batch_split", "parts": parts}));
    let mixed = logits(&model, Some([1, 0]));
    assert_same(&part_of(&mixed, 0, 0, 6), &part_of(&b, 0, 0, 6));
    assert_same(&part_of(&mixed, 1, 0, 6), &part_of(&a, 1, 0, 6));
    assert_same(&logits(&model, None), &a);
}

#[test]
fn an_average_goes_from_one_part_to_the_other_with_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = [
        json!({"kind": "lora", "rank": 3}),
        json!({"kind": "vera", "rank": 4}),
    ];
    let [(a, dir_a), (b, dir_b)] = two(folder.path(), adapters);
    let average = |parts: Value, weights: Value| {
        let method = json!({"kind": "average", "parts": parts, "weights": weights});
        logits(&model(gpt2(), method), None)
    };
    let parts = json!([{"adapter": dir_a}, {"adapter": dir_b}]);
    assert_same(&average(parts.clone(), json!([2.0, 0.0])), &a);
    assert_same(&average(parts.clone(), json!([0.0, 2.0])), &b);
    let same = json!([{"adapter": dir_a}, {"adapter": dir_a}]);
    assert_same(&average(same, json!([0.3, 0.7])), &a);
    assert_different(&average(parts, json!([1.0, 1.0])), &a);
}

#[test]
fn a_stack_of_updates_is_the_sum_of_the_updates() {
    // The second has shared state of its own, and so has the third: each must see its own.
    let folder = tempfile::tempdir().unwrap();
    let (weight, mut sum) = (
        |model: &Adapted<Model>| {
            let tensors = model.clone().merge().expect("updates merge").export();
            let data = tensors["transformer.h.0.attn.c_attn.weight"].clone();
            Tensor::<2>::from_data(data, &Device::flex())
        },
        None,
    );
    let plain = weight(&Adapted::plain(gpt2().valid()));
    let mut parts = Vec::new();
    for (name, method) in [
        ("a", json!({"kind": "lora", "rank": 3})),
        ("b", json!({"kind": "vera", "rank": 4})),
        ("c", json!({"kind": "vera", "rank": 2})),
    ] {
        let (model, folder) = trained(folder.path(), name, gpt2(), method);
        let update = weight(&model) - plain.clone();
        sum = Some(sum.map_or(update.clone(), |sum| sum + update));
        parts.push(json!({"adapter": folder}));
    }
    let stack = model(gpt2(), json!({"kind": "stack", "parts": parts}));
    let expected = plain + sum.unwrap();
    assert_same(&weight(&stack).into_data(), &expected.into_data());
    let merged = Adapted::plain(stack.clone().merge().unwrap());
    assert_same(&logits(&stack, None), &logits(&merged, None));
}

#[test]
fn a_stack_with_a_layer_that_has_no_plain_form_has_none() {
    let lora = json!({"kind": "lora", "rank": 2});
    let gated = json!({"kind": "lora", "rank": 2, "gating": true});
    for parts in [[gated.clone(), lora.clone()], [lora, gated]] {
        let stack = model(gpt2(), json!({"kind": "stack", "parts": parts.clone()}));
        assert!(stack.merge().is_none(), "{parts:?}");
    }
}

#[test]
fn a_fusion_is_whole_without_the_folders_of_its_parts_and_leaves_them_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let [(_, dir_a), (_, dir_b)] = bottlenecks(folder.path());
    let method = json!({"kind": "fusion", "adapters": [dir_a, dir_b]});
    let mut fusion = fitted(gpt2(), &method).unwrap();
    let of_parts = |row: &state::ParamRow| peft_core::compose::is_of_a_part(&row.name);
    let before = state::tensors_where(&fusion.model, of_parts);
    let a = state::load(&dir_a.join("adapter.safetensors")).unwrap();
    let values = |name: &str| before.iter().find(|(n, _)| n.ends_with(name)).unwrap().1;
    let own = a
        .iter()
        .find(|(n, _)| n.ends_with("0.after_mlp.adapter.down"));
    assert_eq!(values("0.after_mlp.parts.0.adapter.down"), own.unwrap().1);

    fusion.model = perturbed(fusion.model, 0.1);
    assert_eq!(state::tensors_where(&fusion.model, of_parts), before);
    let out = folder.path().join("fusion");
    let written = fusion.write(Format::Native, &Value::Null, "x", &out);
    written.unwrap();
    std::fs::remove_dir_all(dir_a).unwrap();
    std::fs::remove_dir_all(dir_b).unwrap();
    let mut init = Init::new(5, &training());
    let loaded = adapter::load(gpt2(), &out, &Registry::builtin(), &mut init);
    let loaded = loaded.unwrap().model.valid();
    assert_eq!(logits(&loaded, None), logits(&fusion.model.valid(), None));

    let file = out.join("adapter.safetensors");
    let mut tensors = state::load(&file).unwrap();
    tensors.retain(|name, _| !name.contains("parts.1"));
    state::save(&tensors, Default::default(), &file).unwrap();
    let loaded = adapter::load(gpt2(), &out, &Registry::builtin(), &mut init);
    let error = format!("{:#}", loaded.err().unwrap());
    assert!(
        error.contains("missing") && error.contains("parts.1"),
        "{error}"
    );
}

#[test]
fn parts_of_other_tasks_come_without_their_heads() {
    let folder = tempfile::tempdir().unwrap();
    // A body without a head, which gets one for as many classes as are asked for.
    let body = folder.path().join("body");
    std::fs::create_dir(&body).unwrap();
    let mut tensors = state::load(&folder_of("bert").join("model.safetensors")).unwrap();
    tensors.retain(|name, _| !name.starts_with("classifier"));
    state::save(
        &tensors,
        Default::default(),
        &body.join("model.safetensors"),
    )
    .unwrap();
    std::fs::copy(
        folder_of("bert").join("config.json"),
        body.join("config.json"),
    )
    .unwrap();
    let base = |classes| {
        let mut init = Init::new(0, &training());
        source::load(&body, Some(classes), &mut init).unwrap().model
    };
    let method = json!({"kind": "pfeiffer", "bottleneck": 4});
    let (_, dir) = trained(folder.path(), "a", base(5), method);
    let method = json!({"kind": "fusion", "adapters": [dir, dir]});
    let fusion = fitted(base(2), &method).unwrap();
    assert_eq!(
        logits(&fusion.model.valid(), None).shape().to_vec(),
        [2, 1, 2]
    );
}

#[test]
fn loaded_adapters_are_composed_without_training() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = [
        json!({"kind": "vera", "rank": 3}),
        json!({"kind": "houlsby", "bottleneck": 3}),
    ];
    let [(a, dir_a), (b, dir_b)] = two(folder.path(), adapters);
    let args = [&dir_a, &dir_b].map(|dir| AdapterArg {
        name: dir.file_name().unwrap().to_str().unwrap().into(),
        folder: dir.clone(),
        weight: None,
        drop_layers: None,
    });
    let registry = Registry::builtin();
    let as_one = |composition: &str| {
        let (model, storage) = (folder_of("gpt2"), StorageSpec::F32);
        let loaded = Adapters::load(&model, &storage, &args, &registry, &Device::flex());
        let one = loaded.unwrap().composed(composition, &registry)?;
        one.into_only()
    };
    let composed = |composition: &str| anyhow::Ok(logits(&as_one(composition)?, None));
    let parts = json!([{"adapter": dir_a}, {"adapter": dir_b}]);
    let stack = model(gpt2(), json!({"kind": "stack", "parts": parts}));
    assert_same(&composed("stack").unwrap(), &logits(&stack, None));
    let all_of_a = "kind = \"average\"\nweights = [1, 0]";
    assert_same(&composed(all_of_a).unwrap(), &a);
    let block = as_one("parallel_block").unwrap();
    let each = models::logits_of_copies(&block, &texts(&block, None));
    let [of_a, of_b] = [each.clone().narrow(0, 0, 2), each.narrow(0, 2, 2)];
    assert_same(&of_a.clone().into_data(), &a);
    assert_same(&of_b.clone().into_data(), &b);
    let mean = (of_a + of_b) / 2.0;
    assert_same(&logits(&block, None), &mean.into_data());
    for (composition, expected) in [
        ("stakc", "did you mean `stack`"),
        ("fusion", "linear layers"),
        ("weights = [1, 0]", "no `kind`"),
        ("lora", "unknown field `parts`"),
    ] {
        let error = format!("{:#}", composed(composition).unwrap_err());
        assert!(error.contains(expected), "{composition}: {error}");
    }
}

#[test]
fn a_folder_that_names_itself_as_a_part_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let method = json!({"kind": "lora", "rank": 2});
    let (_, dir) = trained(folder.path(), "a", gpt2(), method);
    let file = dir.join("adapter.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut about: Value = serde_json::from_str(&text).unwrap();
    for config in [
        json!({"parts": [{"adapter": dir}]}),
        json!({"parts": [{"kind": "stack", "parts": [{"adapter": dir}]}]}),
        json!({"adapters": [dir]}),
    ] {
        (about["kind"], about["config"]) = ("stack".into(), config);
        std::fs::write(&file, about.to_string()).unwrap();
        let method = json!({"kind": "stack", "parts": [{"adapter": dir}]});
        let error = format!("{:#}", fitted(gpt2(), &method).err().unwrap());
        assert!(
            error.contains("of a trained adapter") || error.contains("which none"),
            "{error}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_part_is_said_of_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let lora = json!({"kind": "lora", "rank": 2});
    let (_, dir) = trained(folder.path(), "a", gpt2(), lora.clone());
    let (_, bias) = trained(folder.path(), "b", gpt2(), json!({"kind": "bitfit"}));
    let refused = |method: Value| {
        let error = fitted(gpt2(), &method).err();
        format!(
            "{:#}",
            error.unwrap_or_else(|| panic!("{method} was accepted"))
        )
    };
    let stack = |part: Value| json!({"kind": "stack", "parts": [lora, part]});
    for (part, expected) in [
        (json!({"kind": "lroa"}), "did you mean `lora`"),
        (json!({"kind": "lora", "rnak": 2}), "did you mean `rank`"),
        (json!({"kind": "lora", "rank": 0}), "`rank` is 0"),
        (json!({"kind": "stack", "parts": []}), "`parts` is empty"),
        (json!({"adapter": "/no/where"}), "convert --to native"),
        (json!({"kind": "lora", "frozen": true}), "has no `adapter`"),
        (json!({"adapter": bias}), "merge it into the base"),
        (json!({"kind": "lora_plus", "rank": 2}), "at one rate"),
        (json!({"kind": "eva", "rank": 2}), "start from the data"),
        (json!({"kind": "pissa", "rank": 2}), "the weight whole"),
    ] {
        let error = refused(stack(part));
        assert!(
            error.contains("`parts[1]`") && error.contains(expected),
            "{error}"
        );
    }
    let error = refused(json!({"kind": "fusion", "adapters": [dir]}));
    assert!(
        error.contains("`parts[0]`") && error.contains("linear layers"),
        "{error}"
    );
    let prefix = json!({"kind": "prefix", "num_virtual_tokens": 2});
    let error = refused(json!({"kind": "stack", "parts": [prefix, prefix]}));
    assert!(error.contains("only one part"), "{error}");
    let error = refused(stack(json!({"rank": 2})));
    assert!(error.contains("neither `kind`"), "{error}");
    let error = refused(stack(json!({"adapter": dir, "rank": 2})));
    assert!(error.contains("`adapter` and `rank`"), "{error}");
}
