//! What goes together, and what is refused before anything is computed.

use peft_core::Host;

use super::*;

#[test]
fn classifiers_are_composed_with_the_head_that_all_of_them_have() {
    let folder = tempfile::tempdir().unwrap();
    let bert = || {
        let mut init = Init::new(0, &training());
        source::load(&folder_of("bert"), Some(3), &mut init)
            .unwrap()
            .model
    };
    let method = json!({"kind": "pfeiffer", "bottleneck": 4});
    let (a, dir_a) = trained(folder.path(), "a", bert(), method.clone());
    let (_, dir_b) = trained(folder.path(), "b", bert(), method);
    let composed = |dirs: [&PathBuf; 2]| {
        let arg = |(name, dir): (&str, &PathBuf)| AdapterArg {
            drop_layers: None,
            name: name.into(),
            folder: dir.clone(),
            weight: None,
        };
        let args: Vec<_> = ["x", "y"].into_iter().zip(dirs).map(arg).collect();
        let (model, storage) = (folder_of("bert"), StorageSpec::F32);
        let registry = Registry::builtin();
        let loaded = Adapters::load(&model, &storage, &args, &registry, &Device::flex());
        loaded?.composed("parallel_block", &registry)?.into_only()
    };
    let twice = composed([&dir_a, &dir_a]).unwrap();
    assert_same(&logits(&twice, None), &logits(&a, None));
    let file = dir_b.join("adapter.safetensors");
    let mut tensors = state::load(&file).unwrap();
    let head = tensors.keys().find(|name| name.contains("classifier"));
    let head = head.unwrap().clone();
    let moved = tensors[&head].clone();
    let moved = moved.iter::<f32>().map(|value| value + 0.5).collect();
    let shape = tensors[&head].shape().clone();
    tensors.insert(head, TensorData::new::<f32, _>(moved, shape));
    state::save(&tensors, Default::default(), &file).unwrap();
    let error = format!("{:#}", composed([&dir_a, &dir_b]).unwrap_err());
    assert!(error.contains("heads of their own"), "{error}");
}

#[test]
fn what_divides_a_weight_is_no_part_and_nothing_is_divided_to_find_out() {
    let (registry, geometry) = (Registry::builtin(), gpt2().geometry());
    for part in [
        json!({"kind": "pissa", "rank": 2}),
        json!({"kind": "olora", "rank": 2}),
        json!({"kind": "loftq", "rank": 2}),
    ] {
        let inner = json!({"kind": "stack", "parts": [part]});
        for config in [json!({"parts": [part]}), json!({"parts": [inner]})] {
            let (_, method) = registry.resolve("stack", &config).unwrap();
            let error = method.check(&geometry).unwrap_err().to_string();
            assert!(error.contains("the weight whole"), "{error}");
        }
    }
}

#[test]
fn what_stands_on_the_bases_own_layers_does_not_stand_on_another_part() {
    let (registry, geometry) = (Registry::builtin(), gpt2().geometry());
    let check = |parts: Value| {
        let (_, method) = registry.resolve("stack", &json!({"parts": parts})).unwrap();
        method.check(&geometry).map_err(|e| e.to_string())
    };
    let dora = json!({"kind": "dora", "rank": 2});
    let delora = json!({"kind": "delora", "rank": 2});
    for above in [&dora, &delora] {
        let kind = above["kind"].as_str().unwrap();
        for below in [
            json!({"kind": "lora", "rank": 2}),
            json!({"kind": "vera", "rank": 2}),
            json!({"kind": "molora", "rank": 2, "experts": 2}),
            json!({"kind": "stack", "parts": [{"kind": "lora", "rank": 2}]}),
        ] {
            let error = check(json!([below, above])).unwrap_err();
            let named = below["kind"].as_str().unwrap();
            assert!(
                error.contains(&format!("`parts[1]`: `kind` is {kind}"))
                    && error.contains(&format!("before `{named}`")),
                "{error}"
            );
            let inner = json!({"kind": "stack", "parts": [above]});
            assert!(check(json!([below, inner])).is_err());
            check(json!([above, below])).unwrap();
        }
        let trains = json!({"kind": "lora", "targets": ["c_fc"], "modules_to_save": ["c_attn"]});
        assert!(check(json!([above, trains])).is_err());
        let elsewhere = json!({"kind": "lora", "targets": ["c_fc"]});
        check(json!([elsewhere, above])).unwrap();
        check(json!([{"kind": "pfeiffer", "bottleneck": 4}, above])).unwrap();
    }
}

#[test]
fn parts_kept_apart_have_no_others_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let (lora, part) = (
        json!({"kind": "lora", "rank": 2}),
        json!({"kind": "pfeiffer", "bottleneck": 4}),
    );
    let block = json!({"kind": "parallel_block", "parts": [lora, part]});
    let refused = |method: Value| format!("{:#}", fitted(gpt2(), &method).err().unwrap());
    let error = refused(json!({"kind": "stack", "parts": [lora, block]}));
    assert!(error.contains("with others inside it"), "{error}");
    for (other, expected) in [
        (json!({"kind": "bitfit"}), "parameters of the base"),
        (json!({"kind": "head"}), "parameters of the base"),
        (
            json!({"kind": "prompt_tuning", "num_virtual_tokens": 2}),
            "position offset",
        ),
        (
            json!({"kind": "prefix", "num_virtual_tokens": 2, "takes_positions": true}),
            "position offset",
        ),
    ] {
        let error = refused(json!({"kind": "parallel_block", "parts": [lora, other]}));
        assert!(error.contains(expected), "{error}");
    }
    let prompt = json!({"kind": "prompt_tuning", "num_virtual_tokens": 2});
    let error = refused(json!({"kind": "parallel_block", "parts": [prompt, prompt]}));
    assert!(error.contains("the token embedding"), "{error}");
    let (blocked, _) = trained(folder.path(), "x", gpt2(), block);
    let error = peft_core::blend(gpt2().valid(), vec![(1.0, blocked)]).unwrap_err();
    assert!(error.to_string().contains("copies of a text"), "{error}");
}
