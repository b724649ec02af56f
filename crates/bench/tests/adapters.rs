//! Several adapters on one base: what they compute, and what memory they take.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use bench::adapter::{self, Card, Fitted, Format};
use bench::adapters::{AdapterArg, Adapters};
use bench::registry::Registry;
use bench::trial::StorageSpec;
use bench::{memory, source};
use burn::module::Module;
use burn::tensor::{Device, TensorData};
use models::{Batch, Gpt2Config, Model, Side};
use peft_core::{Adapted, Init, adapt, state};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Memory is counted for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Writes a base of 15 MB.
fn write_base(folder: &Path) {
    let config = json!({
        "model_type": "gpt2", "vocab_size": 2048, "n_positions": 64, "n_embd": 256, "n_layer": 4,
        "n_head": 4
    });
    let shape = Gpt2Config::new(2048, 64, 256, 4, 4);
    let model = Model::random_gpt2(shape, &mut Init::new(0, &Device::flex())).unwrap();
    models::save(&model, &config, folder).unwrap();
}

fn base(folder: &Path) -> Model {
    let mut init = Init::new(0, &Device::flex().autodiff());
    source::load(folder, None, &mut init).unwrap().model
}

/// Writes an adapter for the base, its tensors drawn anew so that it changes the logits.
fn write_adapter(model: &Path, kind: &str, config: serde_json::Value, seed: u64, folder: &Path) {
    let registry = Registry::builtin();
    let method = registry.parse(kind, &config).unwrap();
    let host = base(model);
    let mut init = Init::new(seed, &Device::flex().autodiff());
    let adapted = adapt(host, &*method, None, &mut init).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |data: TensorData| {
        let values: Vec<f32> = (0..data.num_elements())
            .map(|_| rng.random_range(-0.1..0.1))
            .collect();
        TensorData::new(values, data.shape().to_vec())
    };
    let tensors = state::trained_tensors(&adapted);
    let tensors = tensors.into_iter().map(|(name, data)| (name, draw(data)));
    let model = state::set(adapted, tensors.collect(), "drawn").unwrap();
    let card = Card {
        kind: kind.into(),
        config,
        storage: StorageSpec::F32,
        seed: Some(seed),
        ..Card::default()
    };
    let fitted = Fitted {
        model,
        method,
        card,
    };
    fitted
        .write(Format::Native, &json!(null), "drawn", folder)
        .unwrap();
}

fn logits(model: &Adapted<Model>) -> Vec<f32> {
    let ids: &[u32] = &[5, 700, 2047, 1, 33];
    let batch = Batch::new(
        &[ids],
        0,
        Side::Right,
        model.host.positions(),
        &Device::flex(),
    );
    models::logits(model, &batch)
        .into_data()
        .try_to_vec()
        .unwrap()
}

fn afresh(model: &Path, folder: &Path) -> Adapted<Model> {
    let seed = adapter::open(folder).unwrap().seed();
    let mut init = Init::new(seed, &Device::flex().autodiff());
    let loaded = adapter::load(base(model), folder, &Registry::builtin(), &mut init);
    loaded.unwrap().model.valid()
}

/// A base and four adapters of different kinds, loaded together.
fn loaded(folder: &Path) -> (Vec<AdapterArg>, Adapters) {
    let all = json!({ "rank": 4, "targets": "all-linear" });
    let methods = [
        ("lora", all.clone()),
        ("lora", all),
        ("houlsby", json!({ "bottleneck": 8 })),
        ("vera", json!({ "rank": 4 })),
    ];
    let mut args = Vec::new();
    for (place, (kind, config)) in methods.into_iter().enumerate() {
        let name = format!("{kind}{place}");
        let own = folder.join(&name);
        std::fs::create_dir(&own).unwrap();
        write_adapter(folder, kind, config, place as u64 + 1, &own);
        args.push(AdapterArg {
            name,
            folder: own,
            weight: None,
            drop_layers: None,
        });
    }
    let registry = Registry::builtin();
    let adapters =
        Adapters::load(folder, &StorageSpec::F32, &args, &registry, &Device::flex()).unwrap();
    (args, adapters)
}

#[test]
fn every_adapter_computes_as_if_it_were_loaded_alone_whatever_was_used_before() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let (args, adapters) = loaded(folder.path());
    let bare = logits(&Adapted::plain(base(folder.path()).valid()));
    let mut seen = vec![bare.clone()];
    for arg in args.iter().chain(args.iter().rev()) {
        let swapped = logits(adapters.get(&arg.name).unwrap());
        assert_eq!(
            swapped,
            logits(&afresh(folder.path(), &arg.folder)),
            "{}",
            arg.name
        );
        assert_eq!(logits(adapters.get("base").unwrap()), bare);
        seen.push(swapped);
    }
    seen.dedup();
    assert_eq!(
        seen.len(),
        8,
        "neighbours differ but for the one used twice"
    );
}

#[test]
fn adapters_take_the_memory_of_their_own_tensors_and_the_base_is_there_once() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let size = std::fs::metadata(folder.path().join("model.safetensors"))
        .unwrap()
        .len();
    assert!(size > 14 << 20);
    let (args, warm_up) = loaded(folder.path());
    drop(warm_up);
    let registry = Registry::builtin();
    let before = memory::allocated();
    let mut adapters = Adapters::load(
        folder.path(),
        &StorageSpec::F32,
        &[],
        &registry,
        &Device::flex(),
    )
    .unwrap();
    let bare = memory::allocated() - before;
    assert!(bare < size + (1 << 20), "{bare} bytes for a base of {size}");
    for arg in &args {
        let before = memory::allocated();
        adapters.add(arg, &registry).unwrap();
        let grown = memory::allocated() - before;
        let own = std::fs::metadata(arg.folder.join("adapter.safetensors"))
            .unwrap()
            .len();
        assert!(
            grown < own + (1 << 20),
            "{}: {grown} bytes for {own}",
            arg.name
        );
    }
}

#[test]
fn names_are_unique_and_an_unknown_one_is_answered_with_those_there_are() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let (args, mut adapters) = loaded(folder.path());
    let error = adapters
        .add(&args[0], &Registry::builtin())
        .unwrap_err()
        .to_string();
    assert!(error.contains("two adapters are called `lora0`"), "{error}");
    let error = adapters.get("lora9").err().unwrap().to_string();
    assert!(error.contains("`base`, `lora0`, `lora1`"), "{error}");
    assert!(adapters.choose(None).is_err());
    assert_eq!(adapters.choose(Some("base")).unwrap(), "base");
    let one = Adapters::load(
        folder.path(),
        &StorageSpec::F32,
        &args[..1],
        &Registry::builtin(),
        &Device::flex(),
    );
    assert_eq!(one.unwrap().choose(None).unwrap(), "lora0");
}

#[test]
fn adapters_for_a_packed_base_compute_as_over_one_packed_for_each_and_share_it() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let mut args = Vec::new();
    for (place, kind) in ["lora", "houlsby"].into_iter().enumerate() {
        let own = folder.path().join(kind);
        write_adapter(folder.path(), kind, json!({}), place as u64 + 1, &own);
        args.push(own.to_str().unwrap().parse().unwrap());
    }
    let nf4 = StorageSpec::Nf4(peft_qlora::Nf4::new(64, false));
    let registry = Registry::builtin();
    let before = memory::allocated();
    let adapters = Adapters::load(folder.path(), &nf4, &args, &registry, &Device::flex()).unwrap();
    let (held, dense) = (memory::allocated() - before, 12 << 20);
    // The linear layers take an eighth, once; the table of embeddings stays as it is.
    assert!(held < 2 * dense / 3, "{held} bytes");
    for AdapterArg {
        name, folder: own, ..
    } in &args
    {
        let over_dense = logits(&afresh(folder.path(), own));
        // The same adapter, saying itself how its base is stored.
        let file = own.join("adapter.json");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut about: serde_json::Value = serde_json::from_str(&text).unwrap();
        about["storage"] = serde_json::to_value(&nf4).unwrap();
        std::fs::write(&file, about.to_string()).unwrap();
        let expected = logits(&afresh(folder.path(), own));
        assert_eq!(logits(adapters.get(name).unwrap()), expected, "{name}");
        assert_ne!(expected, over_dense, "{name}");
    }
}

#[test]
fn a_method_that_divides_the_weight_divides_it_before_the_base_is_packed() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let registry = Registry::builtin();
    let nf4 = StorageSpec::Nf4(peft_qlora::Nf4::new(64, false));
    let load = |storage: &StorageSpec, args: &[AdapterArg]| {
        Adapters::load(folder.path(), storage, args, &registry, &Device::flex())
    };
    let mut args: Vec<AdapterArg> = Vec::new();
    let layer = "h.0.attn.c_attn";
    for (place, (kind, config)) in [
        ("pissa", json!({"rank": 2, "niter": 2, "targets": layer})),
        ("olora", json!({"rank": 2, "targets": layer})),
        (
            "loftq",
            json!({"rank": 2, "niter": 2, "double_quant": false, "targets": layer}),
        ),
        ("lora", json!({"rank": 2})),
    ]
    .into_iter()
    .enumerate()
    {
        let own = folder.path().join(kind);
        write_adapter(folder.path(), kind, config, place as u64 + 1, &own);
        args.push(own.to_str().unwrap().parse().unwrap());
    }
    // One beside the other, the last over the packed base itself.
    let adapters = load(&nf4, &args).unwrap();
    for arg in &args {
        let found = logits(adapters.get(&arg.name).unwrap());
        let alone = load(&nf4, std::slice::from_ref(arg))
            .unwrap()
            .into_only()
            .unwrap();
        assert_eq!(found, logits(&alone), "{}", arg.name);
        // As training does, where the adapter says itself how its base is stored.
        let file = arg.folder.join("adapter.json");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut about: serde_json::Value = serde_json::from_str(&text).unwrap();
        if arg.name != "loftq" {
            about["storage"] = serde_json::to_value(&nf4).unwrap();
            std::fs::write(&file, about.to_string()).unwrap();
        }
        let expected = logits(&afresh(folder.path(), &arg.folder));
        assert_eq!(found, expected, "{}", arg.name);
        let both = load(&nf4, std::slice::from_ref(arg))
            .unwrap()
            .into_only()
            .unwrap();
        assert_eq!(logits(&both), expected, "{}", arg.name);

        let int8 = StorageSpec::Int8(peft_qlora::Int8 {});
        let error = load(&int8, std::slice::from_ref(arg)).err().unwrap();
        let error = format!("{error:#}");
        assert!(
            error.contains("nf4 in blocks of 64") && error.contains("int8"),
            "{error}"
        );
    }
}

/// The logits of two LoRA adapters, alone and combined with these weights.
fn combined(folder: &Path, weights: [f64; 2]) -> [Vec<f32>; 3] {
    let mut args = Vec::new();
    for (seed, name) in [(1, "a"), (2, "b")] {
        let own = folder.join(name);
        std::fs::create_dir_all(&own).unwrap();
        write_adapter(folder, "lora", json!({ "rank": 4 }), seed, &own);
        args.push(AdapterArg {
            name: name.into(),
            folder: own,
            weight: None,
            drop_layers: None,
        });
    }
    let alone = |arg: &AdapterArg| logits(&afresh(folder, &arg.folder));
    let [a, b] = [alone(&args[0]), alone(&args[1])];
    for (arg, weight) in args.iter_mut().zip(weights) {
        arg.weight = Some(weight);
    }
    let adapters = Adapters::load(
        folder,
        &StorageSpec::F32,
        &args,
        &Registry::builtin(),
        &Device::flex(),
    )
    .unwrap();
    [a, b, logits(adapters.get("a+b").unwrap())]
}

#[test]
fn a_combination_with_all_the_weight_on_one_adapter_is_that_adapter() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-4);
    let [a, b, mixed] = combined(folder.path(), [1.0, 0.0]);
    assert!(near(&mixed, &a) && !near(&mixed, &b));
    let [a, b, mixed] = combined(folder.path(), [0.0, 1.0]);
    assert!(near(&mixed, &b) && !near(&mixed, &a));
    let bare = logits(&Adapted::plain(base(folder.path()).valid()));
    let [_, _, mixed] = combined(folder.path(), [0.0, 0.0]);
    assert!(near(&mixed, &bare));
}

#[test]
fn a_combination_of_lora_adapters_is_the_weighted_sum_of_their_updates() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let [_, _, mixed] = combined(folder.path(), [0.7, 0.3]);
    // The same by hand: every merged weight is the base's plus the weighted differences.
    let merged = |name: &str| {
        let adapted = afresh(folder.path(), &folder.path().join(name));
        adapted.merge().unwrap().export()
    };
    let (base_model, a, b) = (base(folder.path()), merged("a"), merged("b"));
    let mut sum = base_model.export();
    for (name, value) in &mut sum {
        let values = |data: &TensorData| data.clone().try_to_vec::<f32>().unwrap();
        let parts = values(value)
            .into_iter()
            .zip(values(&a[name]))
            .zip(values(&b[name]));
        let mixed = parts.map(|((x, a), b)| x + 0.7 * (a - x) + 0.3 * (b - x));
        *value = TensorData::new(mixed.collect::<Vec<f32>>(), value.shape().to_vec());
    }
    let by_hand = tempfile::tempdir().unwrap();
    state::save(
        &sum,
        Default::default(),
        &by_hand.path().join("model.safetensors"),
    )
    .unwrap();
    let config = folder.path().join("config.json");
    std::fs::copy(config, by_hand.path().join("config.json")).unwrap();
    let expected = logits(&Adapted::plain(base(by_hand.path()).valid()));
    for (ours, expected) in mixed.iter().zip(&expected) {
        assert!((ours - expected).abs() < 1e-4, "{ours} {expected}");
    }
}

/// Two adapters of these kinds, loaded as one with these weights.
fn blended(
    folder: &Path,
    kinds: [(&str, &serde_json::Value); 2],
    weights: [f64; 2],
) -> anyhow::Result<Adapters> {
    let mut args = Vec::new();
    for (seed, ((kind, config), weight)) in kinds.into_iter().zip(weights).enumerate() {
        let own = folder.join(format!("{kind}-{seed}"));
        std::fs::create_dir_all(&own).unwrap();
        write_adapter(folder, kind, config.clone(), seed as u64, &own);
        args.push(AdapterArg {
            name: format!("{kind}-{seed}"),
            folder: own,
            weight: Some(weight),
            drop_layers: None,
        });
    }
    Adapters::load(
        folder,
        &StorageSpec::F32,
        &args,
        &Registry::builtin(),
        &Device::flex(),
    )
}

#[test]
fn a_combination_knows_every_seam_a_method_fills() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let methods = [
        ("bitfit", json!({})),
        ("ln_tuning", json!({})),
        ("top_layers", json!({ "layers": 1 })),
        (
            "pfeiffer",
            json!({ "bottleneck": 8, "inv_adapter": "nice" }),
        ),
        ("compacter", json!({ "bottleneck": 8, "phm_dim": 4 })),
        ("loreft", json!({ "r": 2 })),
        (
            "prefix",
            json!({ "num_virtual_tokens": 3, "prefix_projection": true }),
        ),
        ("prompt_tuning", json!({ "num_virtual_tokens": 3 })),
        ("p_tuning", json!({ "num_virtual_tokens": 3 })),
        ("vera", json!({ "rank": 4 })),
    ];
    for (kind, config) in methods {
        let both = |weights| {
            let model = blended(folder.path(), [(kind, &config); 2], weights).unwrap();
            logits(model.get(&format!("{kind}-0+{kind}-1")).unwrap())
        };
        let alone = |seed: u64| {
            let own = folder.path().join(format!("{kind}-{seed}"));
            logits(&afresh(folder.path(), &own))
        };
        let distance = |x: &[f32], y: &[f32]| {
            assert_eq!(x.len(), y.len(), "{kind}");
            let pairs = x.iter().zip(y);
            pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
        };
        let first = both([1.0, 0.0]);
        let second = both([0.0, 1.0]);
        let [a, b] = [alone(0), alone(1)];
        let apart = distance(&a, &b);
        assert!(apart > 1e-3, "{kind}: {apart}");
        for (weight, ours, expected) in [("first", first, &a), ("second", second, &b)] {
            let error = distance(&ours, expected);
            assert!(
                error < 1e-2 * apart,
                "{kind}, all weight on the {weight}: {error}"
            );
        }
        let half = both([0.5, 0.5]);
        assert!(distance(&half, &a) > 1e-2 * apart, "{kind}");
        assert!(distance(&half, &b) > 1e-2 * apart, "{kind}");
    }
}

#[test]
fn virtual_tokens_that_not_all_adapters_of_a_combination_have_are_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path());
    let prompt = json!({ "num_virtual_tokens": 3 });
    let prefix = json!({ "num_virtual_tokens": 3, "takes_positions": true });
    let (lora, longer) = (json!({}), json!({ "num_virtual_tokens": 4 }));
    let prompt = ("prompt_tuning", &prompt);
    let others = [
        (("prefix", &prefix), "virtual tokens"),
        (("lora", &lora), "position offset"),
        (("prompt_tuning", &longer), "position offset"),
    ];
    for (other, reason) in others {
        let error = blended(folder.path(), [prompt, other], [0.5, 0.5])
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains(reason), "{error:#}");
    }
}

#[test]
fn vera_is_kept_with_its_matrices_and_a_file_of_before_that_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (model, own) = (folder.path(), folder.path().join("vera"));
    std::fs::create_dir(&own).unwrap();
    write_base(model);
    write_adapter(model, "vera", json!({ "rank": 4 }), 3, &own);
    let expected = logits(&afresh(model, &own));
    // The seed has no part in it any more.
    let description = own.join("adapter.json");
    let text = std::fs::read_to_string(&description).unwrap();
    let mut about: serde_json::Value = serde_json::from_str(&text).unwrap();
    about["seed"] = 99.into();
    std::fs::write(&description, about.to_string()).unwrap();
    assert_eq!(logits(&afresh(model, &own)), expected);
    let file = own.join("adapter.safetensors");
    let mut tensors = state::load(&file).unwrap();
    tensors.retain(|name, _| !name.starts_with("shared."));
    state::save(&tensors, Default::default(), &file).unwrap();
    let mut init = Init::new(3, &Device::flex().autodiff());
    let loaded = adapter::load(base(model), &own, &Registry::builtin(), &mut init);
    let error = format!("{:#}", loaded.err().unwrap());
    assert!(
        error.contains("does not hold `shared.a.value`: an earlier version"),
        "{error}"
    );
}
