use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::read::{Format, parse};

fn sample(layout: Layout, json: &str) -> Result<Sample, String> {
    let text = format!("\n{}", json.replace('\n', " "));
    let table = parse(Path::new("d.jsonl"), text.as_bytes(), Format::Jsonl, None).unwrap();
    layout
        .sample(&table, &table.rows[0])
        .map_err(|error| error.to_string())
}

fn turns(layout: Layout, json: &str) -> Vec<(Role, String)> {
    let Sample::Chat(turns) = sample(layout, json).unwrap() else {
        panic!("a chat was expected")
    };
    turns.into_iter().map(|t| (t.role, t.content)).collect()
}

fn pair(layout: Layout, json: &str) -> (String, String) {
    let Sample::Pair { prompt, completion } = sample(layout, json).unwrap() else {
        panic!("a pair was expected")
    };
    (prompt, completion)
}

#[test]
fn an_alpaca_row_with_an_input_has_the_longer_prompt() {
    let row = r#"{"instruction": "Add.", "input": "1, 2", "output": "3"}"#;
    let (prompt, completion) = pair(Layout::Alpaca, row);
    assert_eq!(
        prompt,
        "Below is an instruction that describes a task, paired with an input that provides further \
         context. Write a response that appropriately completes the request.\n\n### Instruction:\n\
         Add.\n\n### Input:\n1, 2\n\n### Response:"
    );
    assert_eq!(completion, "3");
}

#[test]
fn an_alpaca_row_whose_input_is_empty_null_or_missing_has_the_shorter_prompt() {
    for row in [
        r#"{"instruction": "Sing.", "input": "", "output": "La"}"#,
        r#"{"instruction": "Sing.", "input": null, "output": "La"}"#,
        r#"{"instruction": "Sing.", "output": "La"}"#,
    ] {
        assert_eq!(
            pair(Layout::Alpaca, row).0,
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\nSing.\n\n### Response:"
        );
    }
}

#[test]
fn a_sharegpt_chat_may_name_its_roles_either_way_and_its_system_text_apart() {
    let row = r#"{"id": "x", "system": "Be kind.", "conversations": [
        {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "weight": 1},
        {"from": "user", "value": "Bye"}, {"from": "assistant", "value": "Farewell"}]}"#;
    use Role::{Assistant, System, User};
    let expected = [
        (System, "Be kind."),
        (User, "Hi"),
        (Assistant, "Hello"),
        (User, "Bye"),
        (Assistant, "Farewell"),
    ];
    let expected = expected.map(|(role, text)| (role, text.to_string()));
    assert_eq!(turns(Layout::Sharegpt, row), expected);
}

#[test]
fn messages_may_stand_under_any_of_their_usual_names() {
    for name in ["messages", "conversations", "chat"] {
        let row = format!(
            r#"{{"{name}": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "Yo"}}]}}"#
        );
        assert_eq!(turns(Layout::Messages, &row).len(), 2, "{name}");
    }
}

#[test]
fn what_follows_the_last_turn_of_the_assistant_is_left_out() {
    let row = r#"{"messages": [{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "and?"}]}"#;
    assert_eq!(turns(Layout::Messages, row).len(), 2);
}

#[test]
fn every_mistake_is_named_with_its_line_and_its_turn() {
    use Layout::{Alpaca, Messages, PromptCompletion, Sharegpt};
    let user = r#"{"role": "user", "content": "Hi"}"#;
    let long = format!(
        r#"{{"messages": [{}{user}]}}"#,
        format!("{user},").repeat(1000)
    );
    let cases = [
        (
            Alpaca,
            r#"{"instruction": "x"}"#,
            "has no field `output`; its fields are `instruction`",
        ),
        (
            Alpaca,
            r#"{"instruction": "x", "output": " "}"#,
            "field `output` is empty",
        ),
        (
            Alpaca,
            r#"{"instruction": ["x"], "output": "y"}"#,
            "`[\"x\"]`; expected a text",
        ),
        (
            PromptCompletion,
            r#"{"prompt": "x", "completion": ""}"#,
            "field `completion` is empty",
        ),
        (
            PromptCompletion,
            r#"{"completion": "x"}"#,
            "has no field `prompt`",
        ),
        (
            Sharegpt,
            r#"{"messages": []}"#,
            "has no field `conversations`",
        ),
        (
            Sharegpt,
            r#"{"conversations": [{"from": "bot", "value": "x"}]}"#,
            "turn 1 of `conversations` has the unknown role `bot`; the roles are `system`, `human`",
        ),
        (
            Sharegpt,
            r#"{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}"#,
            "turn 2 of `conversations` has no `value`; its keys are `from`",
        ),
        (
            Sharegpt,
            r#"{"system": "a", "conversations": [{"from": "system", "value": "b"},
            {"from": "gpt", "value": "c"}]}"#,
            "expected one of them",
        ),
        (
            Messages,
            r#"{"messages": "Hi"}"#,
            "field `messages` is `\"Hi\"`; expected a list",
        ),
        (
            Messages,
            r#"{"messages": []}"#,
            "`messages` has no turn of the assistant",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "user", "content": "x"}]}"#,
            "no turn of the assistant",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "assistant", "content": "\n"}]}"#,
            "empty `content`",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "tool", "content": "x"}]}"#,
            "unknown role `tool`",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "assistant", "content": null}]}"#,
            "turn 1 of `messages` has `null` for `content`; expected a text",
        ),
        (
            Messages,
            r#"{"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}"#,
            "has `tool_calls`",
        ),
        (
            Messages,
            r#"{"messages": [3]}"#,
            "turn 1 of `messages` is `3`; expected an object",
        ),
        (Messages, &long, "has 1001 turns; expected at most 1000"),
    ];
    for (layout, row, expected) in cases {
        let message = sample(layout, row).unwrap_err();
        assert!(message.starts_with("`d.jsonl` line 2"), "{message}");
        assert!(message.contains(expected), "{message} for {row}");
    }
}

#[test]
fn a_long_value_is_cut_in_messages() {
    let row = format!(r#"{{"messages": "{}"}}"#, "é".repeat(10_000));
    assert!(sample(Layout::Messages, &row).unwrap_err().len() < 400);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_mutated_row_makes_a_layout_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), "[\"{}\\[\\],:a0 ]?"), 1..6),
        which in 0..4usize,
    ) {
        let seeds = [
            r#"{"instruction": "Add.", "input": "1", "output": "3"}"#,
            r#"{"system": "s", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}"#,
            r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}"#,
            r#"{"prompt": "x", "completion": "y"}"#,
        ];
        let layouts = [Layout::Alpaca, Layout::Sharegpt, Layout::Messages, Layout::PromptCompletion];
        let mut text = seeds[which].to_string();
        for (index, new) in edits {
            let at = index.index(text.len().max(1)).min(text.len());
            let end = (at + 1).min(text.len());
            text.replace_range(at..end, &new);
        }
        if let Ok(table) = parse(Path::new("d"), text.as_bytes(), Format::Jsonl, None) {
            for layout in layouts {
                for row in &table.rows {
                    match layout.sample(&table, row) {
                        Ok(Sample::Chat(turns)) => {
                            prop_assert_eq!(turns.last().map(|t| t.role), Some(Role::Assistant));
                            prop_assert!(turns.iter().all(|t| !t.content.trim().is_empty()));
                        }
                        Ok(Sample::Pair { completion, .. }) => {
                            prop_assert!(!completion.trim().is_empty());
                        }
                        Err(error) => prop_assert!(error.to_string().starts_with("`d` line 1")),
                    }
                }
            }
        }
    }
}
