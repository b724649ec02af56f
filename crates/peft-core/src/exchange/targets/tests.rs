use burn::tensor::Device;
use serde_json::json;

use super::*;
use crate::contract::ContractHost;
use crate::host::Host;
use crate::init::Init;
use crate::toy::Toy;

fn geometry() -> Geometry {
    Toy::build(&mut Init::new(0, &Device::flex())).geometry()
}

fn fields(values: Value) -> Fields {
    let Value::Object(values) = values else {
        panic!("a table")
    };
    Fields::new("adapter_config.json", values)
}

/// The paths that a file's targets stand for, or the error.
fn resolved(values: Value) -> Result<Vec<String>, String> {
    let geometry = geometry();
    let (targets, _) =
        resolve_targets(&mut fields(values), &geometry).map_err(|e| e.to_string())?;
    let sites = geometry.sites.iter().filter(|site| targets.contains(site));
    Ok(sites.map(|site| site.path.clone()).collect())
}

/// What `check_target_module_exists` of PEFT 0.21.2 makes of the toy's modules.
#[test]
fn layers_to_transform_are_those_of_peft() {
    let both = ["layers.0.attn.query", "layers.1.attn.query"];
    let with = |layers: Value| {
        resolved(json!({"target_modules": ["query"], "layers_to_transform": layers}))
    };
    assert_eq!(with(json!(null)).unwrap(), both);
    assert_eq!(with(json!([])).unwrap(), both);
    assert_eq!(with(json!(1)).unwrap(), both[1..]);
    assert_eq!(with(json!([0, 7])).unwrap(), both[..1]);
    // No layer has such a number.
    for none in [json!([-1]), json!(-1), json!([2])] {
        let error = with(none).unwrap_err();
        assert!(error.contains("matches no layer"), "{error}");
    }
    for wrong in [json!(["last"]), json!("1"), json!([0.5])] {
        let error = with(wrong).unwrap_err();
        assert!(error.contains("`layers_to_transform`"), "{error}");
    }
    let whole = json!({
        "target_modules": ["layers.0.attn.query", "value"], "layers_to_transform": [1]
    });
    assert_eq!(
        resolved(whole).unwrap(),
        ["layers.0.attn.query", "layers.1.attn.value"]
    );
}

/// As `get_pattern_key` of PEFT 0.21.2 finds a key: the first whose expression matches the end.
#[test]
fn a_pattern_reaches_the_embedding_where_it_is_a_target() {
    let geometry = geometry();
    let table = geometry.table.path.clone();
    let name = table.rsplit('.').next().unwrap();
    let read = |names: &[&str], pattern: Value| {
        let targets = Targets::Many(names.iter().map(|name| name.to_string()).collect());
        let mut fields = fields(json!({"alpha_pattern": pattern}));
        resolve_pattern::<f64>(&mut fields, "alpha_pattern", &geometry, &targets).unwrap()
    };
    let own = json!({name: 3.0, "query": 5.0});
    let found = read(&["query", name], own.clone());
    assert_eq!(found[&table], 3.0);
    assert_eq!(found["layers.1.attn.query"], 5.0);
    assert_eq!(found.len(), 3);
    assert!(!read(&["query"], own).contains_key(&table));
    let first = read(&[name], json!({".*": 7.0, name: 3.0}));
    assert_eq!(first, BTreeMap::from([(table, 7.0)]));
}
