//! Data of every layout, from its file to scores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bench::execute;
use bench::progress::Silent;
use bench::registry::Registry;
use bench::study::Study;
use bench::trial::expand;
use report::record::{Record, Status};

/// Writes a study and its data, and runs its only trial.
fn run(rows: &str, file: &str, keys: &str) -> Record {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(file), rows).unwrap();
    let study = folder.path().join("study.toml");
    let text = format!(
        r#"name = "formats"
        question = "Does it run?"
        model = "${{BASE}}"
        seeds = [1]
        samples = 1
        [task]
        kind = "completion"
        data = {{ train = "{file}", dev = "{file}", test = "{file}" }}
        max_new_tokens = 8
        metric = "bleu"
        {keys}
        [train]
        epochs = 1
        batch_size = 4
        [[method]]
        kind = "lora"
        rank = 2"#
    );
    std::fs::write(&study, text).unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/base/quickstart");
    let base = base.canonicalize().unwrap().to_string_lossy().into_owned();
    let study = Study::load(&study, &BTreeMap::from([("BASE".to_string(), base)])).unwrap();
    let trials = expand(&study, &Registry::builtin(), "cpu", &BTreeMap::new()).unwrap();
    execute::run_to_record(&trials[0], &Registry::builtin(), &mut Silent).unwrap()
}

/// A record of a trial that went well, with a finite loss and an answer for every row.
fn trained(record: &Record, rows: usize, references: &[&str]) {
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    assert_eq!(record.data["train"].examples, rows);
    assert!(record.scores["test"]["loss"].is_finite());
    let expected: Vec<_> = record
        .predictions
        .iter()
        .map(|p| p.expected.as_str())
        .collect();
    assert_eq!(expected, references);
}

#[test]
fn an_alpaca_file_that_is_one_array_trains_and_is_scored() {
    let rows = r#"[
        {"instruction": "Name a colour.", "input": "", "output": "Red"},
        {"instruction": "Double it.", "input": "2", "output": "4"}
    ]"#;
    let record = run(rows, "data.json", "format = \"alpaca\"\nmax_length = 64");
    trained(&record, 2, &["Red", "4"]);
    let prompt = &record.samples[0].prompt;
    assert!(
        prompt.ends_with("Name a colour.\n\n### Response:"),
        "{prompt}"
    );
    // The standard prompt is longer than that in this vocabulary, and what is lost is told.
    let lost = "train: 2 of 2 prompts lost their start to fit `max_length`";
    assert!(
        record.warnings.iter().any(|w| w == lost),
        "{:?}",
        record.warnings
    );
}

#[test]
fn chats_train_on_every_answer_and_are_scored_by_the_last() {
    let sharegpt = r#"{"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Bye"}, {"from": "gpt", "value": "So long"}]}
{"conversations": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "B"}]}"#;
    let keys = "format = \"sharegpt\"\nchat_template = \"zephyr\"\nmax_length = 80";
    let record = run(sharegpt, "data.jsonl", keys);
    // The template writes the end token, which the folder does not name and its model does.
    trained(&record, 2, &["So long", "B"]);
    assert!(record.samples[0].prompt.ends_with("<|assistant|>\n"));

    let messages = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#;
    for loss in ["completion", "all"] {
        let keys = format!(
            "format = \"messages\"\nchat_template = \"chatml\"\nmax_length = 80\nloss_on = \"{loss}\""
        );
        let record = run(messages, "data.jsonl", &keys);
        trained(&record, 1, &["Hello"]);
        let answer = &record.predictions[0].predicted;
        assert!(!answer.contains("<|im_end|>"), "{answer}");
    }
}

#[test]
fn an_answer_that_does_not_fit_is_a_warning_of_the_record() {
    let rows = r#"{"prompt": "Say", "completion": "word word word word word word word word word"}"#;
    let record = run(
        rows,
        "data.jsonl",
        "format = \"prompt_completion\"\nmax_length = 8",
    );
    assert_eq!(record.status, Status::Ok, "{}", record.status.reason());
    let lost = "test: 1 of 1 completions lost their end to fit `max_length`";
    assert!(
        record.warnings.iter().any(|w| w == lost),
        "{:?}",
        record.warnings
    );
}

#[test]
fn what_is_wrong_with_the_data_is_a_failure_that_names_file_and_line() {
    let failed = |rows: &str, keys: &str| {
        let Status::Failed { reason } = run(rows, "data.jsonl", keys).status else {
            panic!("it cannot succeed")
        };
        reason
    };
    let rows = "\n{\"messages\": [{\"role\": \"bot\", \"content\": \"x\"}]}";
    let keys = "format = \"messages\"\nmax_length = 64\n";
    let reason = failed(rows, &format!("{keys}chat_template = \"chatml\""));
    assert!(reason.contains("data.jsonl` line 2: turn 1"), "{reason}");
    let reason = failed(rows, keys);
    assert!(
        reason.contains("quickstart` has no chat template; add"),
        "{reason}"
    );
    let path: PathBuf = "no/such.jinja".into();
    let reason = failed(rows, &format!("{keys}chat_template = {path:?}"));
    assert!(reason.contains("neither a file nor built in"), "{reason}");
}
