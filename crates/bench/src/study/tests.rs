use super::*;
use crate::adversarial::Adversarial;
use crate::layer_drop::AdapterDrop;

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
    let with = |top: &str, train: &str| {
        let text = STUDY.replace("question", &format!("{top}\nquestion"));
        let text = text.replace("[[method]]", &format!("[train]\n{train}\n[[method]]"));
        load(&text, &[("BASE", "/m")]).unwrap_err().to_string()
    };
    for (top, train, expected) in [
        ("", "epochs = 0", "`train.epochs` is 0"),
        (
            "",
            "learning_rate = []",
            "`train.learning_rate` is an empty list",
        ),
        (
            "",
            "learning_rate = [1.0, 0.0]",
            "`train.learning_rate` is 0",
        ),
        ("seeds = []", "", "`seeds` is empty"),
        ("tuning_seeds = 0", "", "`tuning_seeds` is 0"),
        (
            "seeds = [1, 2]\ntuning_seeds = 3",
            "",
            "`tuning_seeds` is 3, expected at least 1 and at most the 2 of `seeds`",
        ),
        (
            "",
            "epochs = 2\nfreeze = [{ params = [\"base\"], from_epoch = 2 }]",
            "`from_epoch` of `train.freeze` is 2, expected less than the 2 epochs",
        ),
    ] {
        let error = with(top, train);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_warm_up_is_a_share_of_the_steps_or_a_number_of_them() {
    let with = |keys: &str| {
        let text = STUDY.replace("[[method]]", &format!("[train]\n{keys}\n[[method]]"));
        load(&text, &[("BASE", "/m")])
    };
    assert_eq!(with("warmup = 0.25").unwrap().train.warmup_of(10), 3);
    assert_eq!(with("warmup_steps = 7").unwrap().train.warmup_of(10), 7);
    let error = with("warmup = 0.25\nwarmup_steps = 7").unwrap_err();
    assert!(error.to_string().contains("say the same"), "{error}");
}

#[test]
fn groups_of_parameters_are_read_from_the_file() {
    let keys = "layer_decay = 0.9\nno_decay = [\"biases\", \"norms\"]\n\
                [train.rates]\nhead = 10.0\n\"c_attn/b\" = 16.0\n\
                [[train.freeze]]\nparams = [\"head\"]\nuntil_epoch = 1\n";
    let text = STUDY.replace("[[method]]", &format!("[train]\n{keys}\n[[method]]"));
    let train = load(&text, &[("BASE", "/m")]).unwrap().train;
    assert_eq!((train.rates["head"], train.rates["c_attn/b"]), (10.0, 16.0));
    assert_eq!((train.layer_decay, train.no_decay.len()), (Some(0.9), 2));
    assert_eq!(train.freeze[0].until_epoch, Some(1));
    let error = load(
        &text.replace("head = 10.0", "head = -1.0"),
        &[("BASE", "/m")],
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("`train.rates` has -1")
    );
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
    let train = serde_json::to_value(TrainConfig::default()).unwrap();
    for key in [
        "adversarial",
        "adapter_drop",
        "stochastic_depth",
        "adapter_dropout",
    ] {
        assert!(train.get(key).is_none(), "{key}");
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
fn values_of_a_wrong_kind_are_refused_with_their_key_in_plain_words() {
    let train = |line: &str| STUDY.replace("[[method]]", &format!("[train]\n{line}\n[[method]]"));
    let data = |data: &str| {
        let files = "{ train = \"a.tsv\", dev = \"b.tsv\", test = \"c.tsv\" }";
        STUDY.replace(files, data)
    };
    for (text, expected) in [
        (
            STUDY.replace("48", "\"long\""),
            "`task.max_length`: found the text \"long\"",
        ),
        (
            train("epochs = 2.5"),
            "`train.epochs`: found `2.5`, expected a whole number",
        ),
        (
            train("learning_rate = \"high\""),
            "`train.learning_rate`: expected a number, or a list",
        ),
        (
            train("learning_rate = [1e-3, \"x\"]"),
            "`train.learning_rate.1`: expected a number",
        ),
        (
            STUDY.replace("name = \"s\"\n", ""),
            "the key `name` is missing",
        ),
        (
            data("\"a.tsv\""),
            "`task.data`: found the text \"a.tsv\", expected a table",
        ),
        (
            data("{ train = \"a.tsv\", dev = \"b.tsv\" }"),
            "`test` is missing",
        ),
        (data("{ trian = \"a.tsv\" }"), "did you mean `train`"),
        (
            data("{ scenario = 1, train = \"a.tsv\" }"),
            "both files and a `scenario`",
        ),
        (
            data("{ sizes = { topics = 2 } }"),
            "a `scenario`, which is missing",
        ),
    ] {
        let error = load(&text, &[("BASE", "/m")]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        for rust in ["usize", "struct", "enum", "f64"] {
            assert!(!error.contains(rust), "{error}");
        }
    }
}

#[test]
fn checkpointing_is_a_key_that_leaves_no_trace_where_it_is_off() {
    let off = serde_json::to_value(load(STUDY, &[("BASE", "/m")]).unwrap().train).unwrap();
    assert!(off.get("checkpointing").is_none());
    let text = STUDY.replace("[[method]]", "[train]\ncheckpointing = true\n[[method]]");
    let study = load(&text, &[("BASE", "/m")]).unwrap();
    assert!(study.train.checkpointing);
}

#[test]
fn only_the_texts_of_completion_tasks_are_packed() {
    let train = "[train]\npacking = true\n[[method]]";
    let error = load(&STUDY.replace("[[method]]", train), &[("BASE", "/m")]).unwrap_err();
    assert!(error.to_string().contains("`train.packing`"), "{error}");
    let study = load(&CHAT.replace("[[method]]", train), &[]).unwrap();
    assert!(study.train.packing);
    let off = serde_json::to_value(load(CHAT, &[]).unwrap().train).unwrap();
    assert!(off.get("packing").is_none());
    for key in ["checkpointing", "packing"] {
        let train = format!(
            "[train]\n{key} = true\nadversarial = {{ kind = \"fgm\", epsilon = 1.0 }}\n[[method]]"
        );
        let error = load(&CHAT.replace("[[method]]", &train), &[]).unwrap_err();
        assert!(
            error.to_string().contains(&format!("`train.{key}`")),
            "{error}"
        );
    }
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
        ("adapter_dropout = 1.0", "train.adapter_dropout"),
    ] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(error.contains(named), "{wrong}: {error}");
    }
}
