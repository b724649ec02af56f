//! Splits of methods that act on linear layers: every token, and every row, goes through the layers of
//! its own part.

use super::*;

/// Two adapters on linear layers, one with state that its layers share.
fn updates(folder: &Path) -> [(TensorData, PathBuf); 2] {
    let methods = [
        json!({"kind": "lora", "rank": 3, "targets": "all-linear"}),
        json!({"kind": "vera", "rank": 4}),
    ];
    two(folder, methods)
}

fn split(kind: &str, dirs: [&PathBuf; 2], more: Value) -> Value {
    let parts = dirs.map(|dir| json!({"adapter": dir}));
    let mut method = json!({"kind": kind, "parts": parts});
    method
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    method
}

#[test]
fn a_batch_split_of_updates_gives_every_row_the_layers_of_its_own_part() {
    let folder = tempfile::tempdir().unwrap();
    let [(a, dir_a), (b, dir_b)] = updates(folder.path());
    assert_different(&a, &b);
    let method = split("batch_split", [&dir_a, &dir_b], json!({}));
    let model = model(gpt2(), method);
    let mixed = logits(&model, Some([1, 0]));
    assert_same(&part_of(&mixed, 0, 0, 6), &part_of(&b, 0, 0, 6));
    assert_same(&part_of(&mixed, 1, 0, 6), &part_of(&a, 1, 0, 6));
    assert_same(&logits(&model, None), &a);
    assert!(model.merge().is_none(), "no one weight serves all rows");
}

#[test]
fn a_split_of_updates_gives_every_token_the_layers_of_its_own_part() {
    let folder = tempfile::tempdir().unwrap();
    let [(a, dir_a), (_, dir_b)] = updates(folder.path());
    let at = |count: usize| {
        let method = split("split", [&dir_a, &dir_b], json!({"splits": [count]}));
        logits(&model(gpt2(), method), None)
    };
    assert_same(&at(6), &a);
    // A text reads from the left, so that its first tokens do not know of the second part.
    let halves = at(3);
    assert_same(&part_of(&halves, 1, 0, 3), &part_of(&a, 1, 0, 3));
    assert_different(&part_of(&halves, 1, 3, 6), &part_of(&a, 1, 3, 6));
}

#[test]
fn prompts_of_a_part_are_read_by_the_layers_of_that_part() {
    // Its keys and values are made by the layer's own projections, which the part changes as well.
    let folder = tempfile::tempdir().unwrap();
    let both = json!({"kind": "stack", "parts": [
        {"kind": "lora", "rank": 2, "targets": "all-linear"},
        {"kind": "adaption_prompt", "adapter_len": 2},
    ]});
    let other = json!({"kind": "lora", "rank": 3, "targets": "all-linear"});
    let [(a, dir_a), (b, dir_b)] = two(folder.path(), [both, other]);
    for (dirs, expected) in [([&dir_a, &dir_b], [&b, &a]), ([&dir_b, &dir_a], [&a, &b])] {
        let method = split("batch_split", dirs, json!({}));
        let mixed = logits(&model(gpt2(), method), Some([1, 0]));
        for (row, expected) in expected.into_iter().enumerate() {
            assert_same(&part_of(&mixed, row, 0, 6), &part_of(expected, row, 0, 6));
        }
    }
}
