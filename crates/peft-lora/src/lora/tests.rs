use super::*;
use burn::tensor::Device;

peft_core::contract_tests!(Lora);

fn geometry() -> Geometry {
    let toy: peft_core::toy::Toy =
        peft_core::contract::ContractHost::build(&mut Init::new(0, &Device::flex()));
    peft_core::Host::geometry(&toy)
}

#[test]
fn a_rank_of_zero_is_refused_by_name() {
    let lora = Lora {
        rank: 0,
        ..Lora::default()
    };
    let error = lora.check(&geometry()).unwrap_err();
    assert!(error.to_string().contains("`rank` is 0"), "{error}");
}

#[test]
fn patterns_set_the_rank_and_alpha_of_the_layers_they_name() {
    let lora: Lora = serde_json::from_value(serde_json::json!({
        "rank": 4, "alpha": 8, "targets": ["query", "value"],
        "rank_pattern": {"query": 2, "layers.1.attn.query": 6},
        "alpha_pattern": {"value": 1}
    }))
    .unwrap();
    lora.check(&geometry()).unwrap();
    assert_eq!(lora.rank_at("layers.0.attn.query"), 2);
    assert_eq!(lora.rank_at("layers.1.attn.query"), 6);
    assert_eq!(lora.scaling_at("layers.1.attn.value"), 0.25);
    assert_eq!(lora.scaling_at("layers.0.attn.query"), 4.0);
}

#[test]
fn a_pattern_that_matches_no_target_is_refused() {
    let lora = Lora {
        rank_pattern: BTreeMap::from([("mlp.up".into(), 2)]),
        ..Lora::default()
    };
    let error = lora.check(&geometry()).unwrap_err().to_string();
    assert!(
        error.contains("`rank_pattern / alpha_pattern` is mlp.up"),
        "{error}"
    );
}

#[test]
fn patterns_reach_the_embedding_where_it_is_a_target() {
    let geometry = geometry();
    let with = |targets: serde_json::Value| -> Lora {
        let keys = serde_json::json!({
            "rank": 4, "alpha": 8, "targets": targets,
            "rank_pattern": {"embedding": 2}, "alpha_pattern": {"embedding": 6},
        });
        serde_json::from_value(keys).unwrap()
    };
    let lora = with(serde_json::json!(["query", "embedding"]));
    lora.check(&geometry).unwrap();
    let table = &geometry.table;
    assert_eq!(lora.rank_at(&table.path), 2);
    assert_eq!(lora.scaling_at(&table.path), 3.0);
    // Two targets of rank 4, and the table.
    let expected = 2 * 4 * (8 + 8) + 2 * (table.rows + table.width);
    assert_eq!(lora.parameters(&geometry), expected);
    let error = with(serde_json::json!(["query"])).check(&geometry);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("is embedding, expected"), "{error}");
    // And come back from PEFT's form.
    let mut fields = Fields::new("x", lora.peft(&geometry).unwrap().fields);
    let read = Lora::from_peft(&mut fields, &geometry).unwrap().unwrap();
    assert_eq!(read.scaling_at(&table.path), 3.0);
    assert_eq!(read.parameters(&geometry), expected);
}

#[test]
fn a_file_that_ties_the_head_to_an_adapted_embedding_is_refused() {
    let read = |own: serde_json::Value, tied: bool| {
        let mut geometry = geometry();
        if tied {
            geometry.params.retain(|param| !param.name.contains("head"));
        }
        let mut fields = serde_json::json!({
            "peft_type": "LORA", "r": 2, "target_modules": ["query"],
            "ensure_weight_tying": true,
        });
        let table = fields.as_object_mut().unwrap();
        table.extend(own.as_object().unwrap().clone());
        let mut fields = Fields::new("adapter_config.json", table.clone());
        Lora::from_peft(&mut fields, &geometry).map_err(|e| e.to_string())
    };
    for own in [
        serde_json::json!({"target_modules": ["query", "embedding"]}),
        serde_json::json!({"modules_to_save": ["embedding"]}),
    ] {
        let error = read(own.clone(), true).unwrap_err();
        assert!(error.contains("`ensure_weight_tying`"), "{error}");
        // PEFT warns and goes on where there is nothing to tie.
        assert!(read(own, false).is_ok());
    }
    assert!(read(serde_json::json!({}), true).is_ok());
}

#[test]
fn modules_to_save_are_trained_whole_and_counted() {
    let lora = Lora {
        rank: 1,
        modules_to_save: vec!["norm_2".into()],
        ..Lora::default()
    };
    let (geometry, plain) = (
        geometry(),
        Lora {
            rank: 1,
            ..Lora::default()
        },
    );
    assert_eq!(
        lora.parameters(&geometry),
        plain.parameters(&geometry) + 2 * 2 * 8
    );
    assert!(is_part_of("norm_2", "layers.0.norm_2.weight"));
    assert!(!is_part_of("norm", "layers.0.norm_2.weight"));
}

#[test]
fn what_has_no_meaning_beside_a_gate_is_refused_by_name() {
    let refusals = [
        (
            serde_json::json!({"gating": true, "rslora": true}),
            "`rslora`",
        ),
        (
            serde_json::json!({"gating": true, "alpha_pattern": {"query": 2}}),
            "`alpha_pattern`",
        ),
        (
            serde_json::json!({"gating": true, "lora_bias": true}),
            "`lora_bias`",
        ),
        (
            serde_json::json!({"gating": true, "targets": ["query", "embedding"]}),
            "`targets`",
        ),
    ];
    for (keys, name) in refusals {
        let lora: Lora = serde_json::from_value(keys).unwrap();
        let error = lora.check(&geometry()).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("`gating`"),
            "{error}"
        );
    }
}

#[test]
fn only_whole_sets_of_attention_projections_have_a_form_in_adapterhub() {
    let has_form = |keys| {
        let lora: Lora = serde_json::from_value(keys).unwrap();
        lora.adapter_hub(&geometry(), "x").is_some()
    };
    assert!(has_form(serde_json::json!({})));
    assert!(has_form(
        serde_json::json!({"targets": ["key", "value"], "alpha": 3})
    ));
    for keys in [
        serde_json::json!({"targets": "all-linear"}),
        serde_json::json!({"targets": ["layers.0.attn.query"]}),
        serde_json::json!({"targets": ["layers.0.attn.query", "layers.1.mlp.up"]}),
        serde_json::json!({"rslora": true}),
        serde_json::json!({"rank_pattern": {"query": 2}}),
        // The toy is a language model.
        serde_json::json!({"gating": true}),
    ] {
        assert!(!has_form(keys.clone()), "{keys}");
    }
}

#[test]
fn adapterhubs_lora_is_read_and_what_it_cannot_be_here_is_refused() {
    let read = |change: (&str, serde_json::Value)| {
        let mut fields = Lora::default()
            .adapter_hub(&geometry(), "x")
            .unwrap()
            .fields;
        fields.insert(change.0.into(), change.1);
        let mut fields = Fields::new("config.json", fields);
        let Some(lora) = Lora::from_adapter_hub(&mut fields, &geometry())? else {
            return Ok(None);
        };
        fields.ignore(&["architecture"]);
        fields.finish().map(|()| Some(lora))
    };
    let lora = read(("r", 3.into())).unwrap().unwrap();
    assert_eq!((lora.rank, lora.alpha), (3, 16.0));
    assert_eq!(lora.targets.names(), ["query", "value"]);
    for (key, value) in [
        ("use_gating", serde_json::json!(true)),
        ("use_dora", serde_json::json!(true)),
        ("vera_d", serde_json::json!(0.1)),
        ("composition_mode", serde_json::json!("scale")),
        ("attn_matrices", serde_json::json!(["q", "o"])),
        ("intermediate_lora", serde_json::json!(true)),
        ("selfattn_lora", serde_json::json!(false)),
        ("leave_out", serde_json::json!([1])),
    ] {
        let error = read((key, value)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{key}` of `config.json`")),
            "{error}"
        );
    }
    assert!(
        read(("architecture", "prefix_tuning".into()))
            .unwrap()
            .is_none()
    );
}
