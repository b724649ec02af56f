use super::*;

const STUDY: &str = r#"
    name = "s"
    question = "?"
    model = "${BASE}/model"
    [task]
    kind = "classification"
    data = { train = "a.tsv", dev = "b.tsv", test = "c.tsv" }
    text = "{{ sentence }}"
    label = "label"
    max_length = 48
    metric = "accuracy"
    [[method]]
    kind = "lora"
    rank = [1, 8]
"#;

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Study, BenchError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("study.toml");
    std::fs::write(&file, text).unwrap();
    let pairs = variables
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()));
    Study::load(&file, &pairs.collect())
}

#[test]
fn variables_are_filled_in_and_paths_start_at_the_file() {
    let study = load(STUDY, &[("BASE", "/models")]).unwrap();
    assert_eq!(study.model, "/models/model");
    let Task::Classification {
        data: DataSource::Files(files),
        ..
    } = study.task
    else {
        panic!()
    };
    assert!(files.train.ends_with("a.tsv") && files.train.len() > 5);
}

#[test]
fn a_name_of_the_hub_stays_one_and_is_checked() {
    let study = load(STUDY, &[("BASE", "hf://org")]).unwrap();
    assert_eq!(study.model, "hf://org/model@main");
    let error = load(STUDY, &[("BASE", "hf://..")]).unwrap_err().to_string();
    assert!(
        error.contains("study.toml") && error.contains("no name of the hub"),
        "{error}"
    );
}

#[test]
fn a_variable_without_value_is_an_error_that_says_how_to_give_it() {
    let error = load(&STUDY.replace("BASE", "NO_SUCH_VAR"), &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("--var NO_SUCH_VAR="), "{error}");
}

#[test]
fn a_misspelt_key_is_an_error_with_a_suggestion_and_a_line() {
    let text = STUDY.replace("question", "qestion");
    let error = load(&text, &[("BASE", "/m")]).unwrap_err().to_string();
    assert!(
        error.contains("did you mean `question`") && error.contains("line 3"),
        "{error}"
    );
}

#[test]
fn impossible_values_are_refused_by_name() {
    let text = STUDY.replace("[[method]]", "[train]\nepochs = 0\n[[method]]");
    let error = load(&text, &[("BASE", "/m")]).unwrap_err().to_string();
    assert!(error.contains("train.epochs"), "{error}");
}

const CHAT: &str = r#"
    name = "s"
    question = "?"
    model = "m"
    [task]
    kind = "completion"
    format = "messages"
    data = { train = "a.jsonl", dev = "b.json", test = "c.parquet" }
    max_length = 48
    max_new_tokens = 8
    metric = "bleu"
    [[method]]
    kind = "lora"
"#;

fn chat_template(study: &Study) -> Option<&str> {
    let Task::Completion { chat_template, .. } = &study.task else {
        panic!()
    };
    chat_template.as_deref()
}

#[test]
fn a_chat_template_is_a_name_or_a_path_from_the_file() {
    let with = |choice: &str| {
        let key = format!("chat_template = \"{choice}\"\n");
        let text = CHAT.replace("max_length", &(key + "max_length"));
        load(&text, &[("T", "/t")]).unwrap()
    };
    assert_eq!(chat_template(&load(CHAT, &[]).unwrap()), None);
    assert_eq!(chat_template(&with("chatml")), Some("chatml"));
    assert_eq!(chat_template(&with("${T}/a.jinja")), Some("/t/a.jinja"));
    let study = with("own.jinja");
    let path = chat_template(&study).unwrap();
    assert!(path.ends_with("/own.jinja"), "{path}");
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (old, new, expected) in [
        (
            "max_length",
            "prompt = \"{{ q }}\"\nmax_length",
            "remove `prompt`",
        ),
        (
            "\"messages\"",
            "\"alpaca\"\nchat_template = \"chatml\"",
            "`chat_template`",
        ),
        ("\"messages\"", "\"mesages\"", "did you mean `messages`"),
        ("max_length", "loss_on = \"al\"\nmax_length", "`all`"),
    ] {
        let error = load(&CHAT.replacen(old, new, 1), &[]).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn keys_left_at_their_defaults_leave_no_trace_in_the_identity_of_a_trial() {
    let text = CHAT.replace("format = \"messages\"\n", "");
    let task = serde_json::to_value(load(&text, &[]).unwrap().task).unwrap();
    for key in ["format", "chat_template", "loss_on"] {
        assert!(task.get(key).is_none(), "{key}");
    }
}

#[test]
fn a_name_that_would_lead_out_of_the_folder_of_results_is_refused() {
    for name in ["../x", "a/b", ".hidden", ""] {
        let text = STUDY.replace("name = \"s\"", &format!("name = \"{name}\""));
        let error = load(&text, &[("BASE", "/m")]).unwrap_err().to_string();
        assert!(error.contains("`name` is"), "{error}");
    }
}

#[test]
fn a_metric_of_the_other_kind_of_task_is_refused() {
    let text = STUDY.replace("accuracy", "exact_match");
    let error = load(&text, &[("BASE", "/m")]).unwrap_err().to_string();
    assert!(
        error.contains("`exact_match`") && error.contains("`accuracy`"),
        "{error}"
    );
}

#[test]
fn folders_of_trained_adapters_start_at_the_file_too() {
    let fusion = r#"
    [[method]]
    kind = "stack"
    parts = [
        { adapter = "${BASE}/a" },
        { kind = "fusion", adapters = ["b", "hf://org/c"] },
        { kind = "lora", rank = 2 },
    ]
    "#;
    let study = load(&format!("{STUDY}{fusion}"), &[("BASE", "/models")]).unwrap();
    let parts = &study.method[1].config["parts"];
    assert_eq!(parts[0]["adapter"], "/models/a");
    let folders = &parts[1]["adapters"];
    let near = folders[0].as_str().unwrap();
    assert!(near.ends_with("/b") && near.len() > 2, "{near}");
    assert_eq!(folders[1], "hf://org/c");
}

#[test]
fn strategies_of_training_are_read_checked_and_named_when_misspelt() {
    let with = |train: &str| {
        let text = STUDY.replace("[[method]]", &format!("[train]\n{train}\n[[method]]"));
        load(&text, &[("BASE", "/m")]).map(|study| study.train)
    };
    let train = with(
        "adversarial = { kind = \"freelb\", steps = 3, step_size = 0.1, epsilon = 0.3 }\n\
         adapter_drop = { kind = \"robust\", layers = 4 }\nstochastic_depth = 0.1",
    )
    .unwrap();
    let robust = AdapterDrop::Robust {
        layers: 4,
        evaluate: 0,
    };
    assert_eq!(train.adapter_drop, Some(robust));
    assert_eq!(train.stochastic_depth, Some(0.1));
    assert!(matches!(
        train.adversarial,
        Some(Adversarial::Freelb { steps: 3, .. })
    ));
    for (wrong, named) in [
        (
            "adversarial = { kind = \"fgm\", epsilon = 0.0 }",
            "train.adversarial.epsilon",
        ),
        (
            "adversarial = { kind = \"fgm\", epsilon = 1.0, step = 2 }",
            "step",
        ),
        (
            "adapter_drop = { kind = \"specialized\", layers = 0 }",
            "train.adapter_drop.layers",
        ),
        ("stochastic_depth = 1.5", "train.stochastic_depth"),
    ] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(error.contains(named), "{wrong}: {error}");
    }
}

#[test]
fn a_strategy_that_is_not_used_is_not_part_of_what_a_trial_is_known_by() {
    let settings = serde_json::to_value(TrainConfig::default()).unwrap();
    for key in ["adversarial", "adapter_drop", "stochastic_depth"] {
        assert_eq!(settings.get(key), None);
    }
}
