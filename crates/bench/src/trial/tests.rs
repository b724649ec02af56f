use peft_qlora::{Fp4, Int8, Nf4};

use super::*;

fn study(methods: &str) -> Study {
    let text = format!(
        r#"
        name = "s"
        question = "?"
        model = "m"
        seeds = [1, 2]
        [task]
        kind = "completion"
        data = {{ scenario = 1 }}
        max_length = 56
        max_new_tokens = 32
        metric = "exact_match"
        {methods}"#
    );
    toml::from_str(&text).unwrap()
}

fn expanded(methods: &str) -> Result<Vec<Trial>, BenchError> {
    expand(
        &study(methods),
        &Registry::builtin(),
        "cpu",
        &BTreeMap::new(),
    )
}

#[test]
fn sizes_learning_rates_and_seeds_multiply() {
    let method = "[[method]]\nkind = \"lora\"\nrank = [1, 8]\nlearning_rate = [1e-3, 3e-3]";
    let trials = expanded(method).unwrap();
    assert_eq!(trials.len(), 8);
    assert_eq!(trials[0].id, "lora-r1--lr1e-3--s1");
    assert_eq!(trials[7].label, "LoRA r8");
    let hashes: HashSet<_> = trials.iter().map(|t| &t.hash).collect();
    assert_eq!(hashes.len(), 8);
}

#[test]
fn the_same_study_expands_to_the_same_hashes() {
    let method = "[[method]]\nkind = \"houlsby\"\nbottleneck = 4";
    assert_eq!(
        expanded(method).unwrap()[0].hash,
        expanded(method).unwrap()[0].hash
    );
}

#[test]
fn storage_is_an_axis_beside_the_method() {
    let method =
        "[[method]]\nkind = \"pfeiffer\"\nbottleneck = 4\nstorage = \"nf4\"\nblock_size = 128";
    let trial = &expanded(method).unwrap()[0];
    assert_eq!(trial.storage, StorageSpec::Nf4(Nf4::new(128, true)));
    assert_eq!(trial.label, "Pfeiffer nf4+dq 4");
}

#[test]
fn every_storage_is_chosen_by_its_name_and_says_so_in_the_label() {
    let rows = [
        ("f32", StorageSpec::F32, ""),
        ("fp4", StorageSpec::Fp4(Fp4::new(32, false)), "fp4"),
        ("int8", StorageSpec::Int8(Int8 {}), "int8"),
    ];
    for (name, storage, label) in rows {
        let keys = match name {
            "fp4" => "block_size = 32\ndouble_quant = false",
            _ => "",
        };
        let method = format!("[[method]]\nkind = \"lora\"\nrank = 2\nstorage = \"{name}\"\n{keys}");
        let trial = &expanded(&method).unwrap()[0];
        assert_eq!(trial.storage, storage);
        assert!(trial.label.contains(label), "{}", trial.label);
    }
    let blocks = "[[method]]\nkind = \"lora\"\nstorage = \"int8\"\nblock_size = 64";
    let error = expanded(blocks).unwrap_err().to_string();
    assert!(error.contains("unknown field `block_size`"), "{error}");
}

#[test]
fn a_misspelt_key_of_a_method_names_the_row_and_the_nearest_key() {
    let error = expanded("[[method]]\nkind = \"lora\"\nrnak = 8")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("method 1") && error.contains("did you mean `rank`"),
        "{error}"
    );
}

#[test]
fn records_name_a_model_of_the_hub_and_no_folder() {
    let registry = Registry::builtin();
    let mut trial = expanded("[[method]]\nkind = \"lora\"").unwrap().remove(0);
    assert_eq!(trial.info(&registry).unwrap().config.get("model"), None);
    trial.model = format!("hf://org/model@{}", "0a".repeat(20));
    let info = trial.info(&registry).unwrap();
    assert_eq!(info.config["model"], trial.model);
}

#[test]
fn a_method_that_packs_the_base_itself_takes_no_other_storage() {
    let rows = [
        "kind = \"qlora\"\nstorage = \"int8\"",
        "kind = \"qlora\"\nstorage = \"f32\"",
        "kind = \"loftq\"\nstorage = \"nf4\"\nblock_size = 64",
        "kind = \"stack\"\nparts = [{ kind = \"qlora\" }, { kind = \"pfeiffer\" }]\nstorage = \"nf4\"",
    ];
    for row in rows {
        let error = expanded(&format!("[[method]]\n{row}")).unwrap_err();
        let error = error.to_string();
        let expected = "expected none: the method packs the frozen weights itself, as nf4+dq in \
                        blocks of 64";
        assert!(
            error.contains("method 1") && error.contains(expected),
            "{error}"
        );
        let without = row.replace("storage", "#");
        assert!(
            expanded(&format!("[[method]]\n{without}")).is_ok(),
            "{without}"
        );
    }
}

#[test]
fn a_row_that_asks_for_no_trial_is_refused() {
    for (keys, expected) in [
        ("rank = []", "`rank` is an empty list"),
        ("learning_rate = []", "`learning_rate` is an empty list"),
        ("learning_rate = -1.0", "`learning_rate` is -1"),
        ("epochs = 0", "`epochs` is 0"),
    ] {
        let error = expanded(&format!("[[method]]\nkind = \"lora\"\n{keys}"));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("method 1 (`lora`)") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn a_chat_template_decides_by_what_it_says_and_not_by_where_it_lies() {
    let hash = |template: &str| {
        let mut trial = expanded("[[method]]\nkind = \"lora\"").unwrap().remove(0);
        let Task::Completion { chat_template, .. } = &mut trial.task else {
            panic!("the study is of completions")
        };
        *chat_template = Some(template.into());
        with_hash(trial, &Registry::builtin(), &BTreeMap::new()).hash
    };
    assert_eq!(hash("here/own.jinja"), hash("/there/own.jinja"));
    assert_ne!(hash("chatml"), hash("llama3"));
}

#[test]
fn two_rows_of_one_name_are_refused() {
    let row = "[[method]]\nkind = \"lora\"\nrank = 8\n";
    let error = expanded(&row.repeat(2)).unwrap_err().to_string();
    assert!(error.contains("second named `LoRA r8`"), "{error}");
}

#[test]
fn a_wrong_kind_of_value_in_a_method_is_told_with_its_key() {
    for (keys, expected) in [
        (
            "rank = [1, \"x\"]",
            "`rank`: found the text \"x\", expected a whole number",
        ),
        (
            "alpha = \"x\"",
            "`alpha`: found the text \"x\", expected a number",
        ),
        (
            "targets = 3",
            "`targets`: expected a name, or a list of names",
        ),
        (
            "storage = \"nf4\"\nblock_size = \"x\"",
            "`block_size`: found the text \"x\"",
        ),
    ] {
        let error = expanded(&format!("[[method]]\nkind = \"lora\"\n{keys}"));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("method 1") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn texts_are_not_packed_for_methods_that_need_a_row_for_each() {
    let registry = Registry::builtin();
    let check = |kind: &str| {
        let mut trial = expanded(&format!("[[method]]\nkind = \"{kind}\""))
            .unwrap()
            .remove(0);
        trial.check_method(&registry).unwrap();
        trial.train.packing = true;
        trial.check_method(&registry).map_err(|e| e.to_string())
    };
    check("lora").unwrap();
    let error = check("prompt_tuning").unwrap_err();
    assert!(error.contains("leave `packing` out"), "{error}");
}

#[test]
fn a_method_that_trains_otherwise_than_before_has_other_trials_as_a_part_too() {
    let registry = Registry::builtin();
    let of = |kind: &str, config| registry.revisions(kind, &config);
    let lora = serde_json::json!({"kind": "lora"});
    assert!(of("lora", lora.clone()).is_empty());
    let loreft = BTreeMap::from([("loreft".to_string(), 2)]);
    assert_eq!(of("loreft", serde_json::json!({"r": 2})), loreft);
    let inner = serde_json::json!({"kind": "average", "parts": [{"kind": "loreft"}]});
    let stack = serde_json::json!({"parts": [lora, inner]});
    assert_eq!(of("stack", stack), loreft);
}
