use serde_json::{Value, json};

use super::*;

fn part(json: Value) -> Result<Part, String> {
    serde_json::from_value(json).map_err(|e| e.to_string())
}

#[test]
fn a_part_is_written_as_it_is_read() {
    for json in [
        json!({"kind": "lora", "rank": 4}),
        json!({"adapter": "out/a"}),
        json!({"kind": "lora", "rank": 4, "adapter": "out/a", "digest": "0a", "frozen": false}),
    ] {
        let read = part(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), json);
    }
}

#[test]
fn a_part_from_a_folder_is_frozen_unless_it_says_otherwise() {
    let frozen = |json| part(json).unwrap().is_frozen();
    assert!(frozen(json!({"adapter": "out/a"})));
    assert!(!frozen(json!({"adapter": "out/a", "frozen": false})));
    assert!(!frozen(json!({"kind": "lora"})));
    assert!(part(json!({"kind": "lora", "frozen": 1})).is_err());
    assert!(part(json!({"kind": 3})).is_err());
}

#[test]
fn parameters_of_parts_are_told_from_those_of_the_base_by_their_names() {
    for (name, expected) in [
        ("host.layers.0.query.part.a", true),
        ("host.layers.0.query.part.base.below.weight", false),
        ("host.layers.0.query.part.base.below.part.a", true),
        (
            "host.layers.0.query.part.base.below.part.base.below.weight",
            false,
        ),
        ("host.layers.0.after_mlp.parts.1.adapter.down", true),
        ("host.layers.0.after_mlp.query.weight", false),
        ("shared.parts.0.a", true),
        ("host.layers.0.query.weight", false),
    ] {
        assert_eq!(is_of_a_part(name), expected, "{name}");
    }
}
