use std::path::PathBuf;

use serde_json::Value as Json;

use super::*;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat")
}

fn cases() -> Json {
    serde_json::from_str(&std::fs::read_to_string(golden().join("cases.json")).unwrap()).unwrap()
}

fn template(name: &str) -> ChatTemplate {
    let file = golden().join(format!("templates/{name}.jinja"));
    let choice = match file.is_file() {
        true => file.to_str().unwrap(),
        false => name,
    };
    ChatTemplate::chosen(choice, &golden().join("model")).unwrap()
}

/// A folder of files by name and content.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn say(folder: &Path) -> Result<String, String> {
    let turns = [Turn {
        role: Role::User,
        content: "Hi".into(),
    }];
    ChatTemplate::of_folder(folder)
        .and_then(|template| template.compile()?.text(&turns))
        .map_err(|error| error.to_string())
}

#[test]
fn texts_are_those_of_transformers() {
    let cases = cases();
    let check = |found: Result<String, TaskError>, expected: &Json, what: &Json| match expected {
        Json::String(text) => assert_eq!(&found.unwrap(), text, "{what}"),
        refused => {
            let (message, reason) = (found.unwrap_err().to_string(), &refused["error"]);
            assert!(message.contains(reason.as_str().unwrap()), "{message}");
        }
    };
    let mut names = std::collections::BTreeSet::new();
    for case in cases["texts"].as_array().unwrap() {
        let chat = &cases["chats"][case["chat"].as_u64().unwrap() as usize];
        let turns: Vec<Turn> = serde_json::from_value(chat.clone()).unwrap();
        let name = case["template"].as_str().unwrap();
        names.insert(name.to_string());
        let template = template(name);
        let template = template.compile().unwrap();
        check(template.text(&turns), &case["text"], case);
        check(
            template.prompt(&turns[..turns.len() - 1]),
            &case["prompt"],
            case,
        );
    }
    let own = ["busy", "spaced", "tracked", "tracked_inst"];
    let expected = ChatTemplate::builtins().chain(own).map(str::to_string);
    assert_eq!(names, expected.collect(), "every template has cases");
}

#[test]
fn a_folder_may_hold_its_template_in_any_of_the_usual_places() {
    let config = r#"{"chat_template": "config {{ messages[0].content }}{{ bos_token }}",
        "bos_token": {"content": "<s>"}}"#;
    let file = ("chat_template.jinja", "file {{ messages[0].content }}");
    let old = r#"{"chat_template": "old"}"#;
    let of = |files: &[(&str, &str)]| say(folder(files).path()).unwrap();
    assert_eq!(of(&[("tokenizer_config.json", config)]), "config Hi<s>");
    assert_eq!(of(&[("tokenizer_config.json", config), file]), "file Hi");
    assert_eq!(of(&[("chat_template.json", old)]), "old");
    let both = [
        ("chat_template.json", old),
        ("tokenizer_config.json", config),
    ];
    assert_eq!(of(&both), "config Hi<s>");
}

#[test]
fn of_several_templates_the_default_one_counts() {
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"},
        {"name": "default", "template": "d"}]}"#;
    assert_eq!(
        say(folder(&[("tokenizer_config.json", list)]).path()).unwrap(),
        "d"
    );
    let none = list.replace("default", "rag");
    let message = say(folder(&[("tokenizer_config.json", &none)]).path()).unwrap_err();
    assert!(
        message.contains("none of its templates is called `default`"),
        "{message}"
    );
}

#[test]
fn what_ends_a_turn_is_what_the_template_writes_behind_an_answer() {
    for (name, mark) in [
        ("chatml", Some("<|im_end|>")),
        ("gemma", Some("<end_of_turn>")),
        ("llama2", Some("</s>")),
        ("llama3", Some("<|eot_id|>")),
        ("zephyr", Some("</s>")),
    ] {
        let found = template(name).end_of_turn().unwrap();
        assert_eq!(found.as_deref(), mark, "{name}");
    }
    let open = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let folder = folder(&[("chat_template.jinja", open)]);
    let template = ChatTemplate::of_folder(folder.path()).unwrap();
    assert_eq!(template.end_of_turn().unwrap(), None);
}

#[test]
fn a_folder_without_a_template_is_an_error_that_says_what_to_add() {
    let message = say(folder(&[("tokenizer_config.json", "{}")]).path()).unwrap_err();
    for part in [
        "tokenizer_config.json",
        "chat_template.jinja",
        "`chatml`",
        "`llama3`",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn damaged_files_and_templates_are_errors_that_name_them() {
    for (file, text, expected) in [
        (
            "tokenizer_config.json",
            "{\n\n x",
            "tokenizer_config.json` line 3",
        ),
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        (
            "tokenizer_config.json",
            r#"{"chat_template": 3}"#,
            "neither a text nor a list",
        ),
        (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "default"}]}"#,
            "no text",
        ),
        (
            "chat_template.jinja",
            "{% for %}",
            "chat_template.jinja`: syntax error",
        ),
        (
            "chat_template.jinja",
            "{% generation",
            "chat_template.jinja`",
        ),
        (
            "chat_template.jinja",
            "{{ messages[0].content.no_such() }}",
            "no_such",
        ),
        ("chat_template.jinja", "{{ 'a' | tojson(no=1) }}", "keyword"),
        (
            "chat_template.jinja",
            "{{ strftime_now('%Q') }}",
            "`%Q` is no format of a date",
        ),
        (
            "chat_template.jinja",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "fuel",
        ),
        (
            "chat_template.jinja",
            "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
            "recursion",
        ),
    ] {
        let message = say(folder(&[(file, text)]).path()).unwrap_err();
        assert!(message.contains(expected), "{message} for {text}");
    }
}

#[test]
fn a_template_that_is_neither_a_file_nor_built_in_is_refused() {
    let error = ChatTemplate::chosen("chatmil", &golden()).unwrap_err();
    assert!(error.to_string().contains("`chatml`"), "{error}");
}

#[test]
fn the_date_is_written_as_python_writes_it() {
    let text = say(folder(&[("chat_template.jinja", "{{ strftime_now('%d %b %Y') }}")]).path());
    let text = text.unwrap();
    let parts: Vec<_> = text.split(' ').collect();
    assert_eq!(
        parts.iter().map(|p| p.len()).collect::<Vec<_>>(),
        [2, 3, 4],
        "{text}"
    );
    assert!(parts[2].parse::<u32>().unwrap() >= 2025);
}
