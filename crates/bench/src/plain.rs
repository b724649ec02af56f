//! What a reader of TOML or JSON says of a wrong value, in plain words and with its key.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::with_suggestion;

/// What a type's parser says of a value, none where it takes it.
type Parse<'a> = &'a dyn Fn(Value) -> Option<String>;

/// The error of a TOML text that was to be a `T`, with the lines it is about.
pub(crate) fn toml<T: DeserializeOwned>(error: &::toml::de::Error, text: &str) -> String {
    let parse = |value| serde_json::from_value::<T>(value).err();
    let parse = |value| parse(value).map(|error| error.to_string());
    // Tables that are chosen by a `kind` forget where their values stood.
    let value = ::toml::from_str::<Value>(text).ok();
    let found = value.and_then(|value| Some((parse(value.clone())?, value)));
    let reason = match found {
        Some((message, value)) => said(&message, &value, &parse),
        None => words(error.message()),
    };
    let shown = error.to_string();
    let place = shown.trim_end().strip_suffix(error.message().trim_end());
    format!("{}{reason}", place.unwrap_or_default())
}

/// A message in plain words, behind the key of the value that it is about.
pub(crate) fn said(message: &str, value: &Value, parse: Parse<'_>) -> String {
    let said = with_suggestion(&words(message));
    match blamed(message, value, parse) {
        Some(key) => format!("`{key}`: {said}"),
        None => said,
    }
}

/// The key of the value that a message is about.
fn blamed(message: &str, value: &Value, parse: Parse<'_>) -> Option<String> {
    let mut keys = Vec::new();
    list(value, String::new(), &mut keys);
    let key = match parts(message) {
        Some((found, expected)) => keys.into_iter().find(|key| {
            let here = value.pointer(key);
            here.is_some_and(|v| is_called(v, found)) && is_wanted(expected, value, key, parse)
        }),
        // A choice between kinds says what it expected, and nothing of what it found.
        None if message.starts_with("expected ") => keys.into_iter().find(|key| {
            let mut without = value.clone();
            remove(&mut without, key);
            parse(without).is_none()
        }),
        None => None,
    };
    Some(key?.trim_start_matches('/').replace('/', "."))
}

/// What a message found and what it expected.
fn parts(message: &str) -> Option<(&str, &str)> {
    let starts = ["invalid type: ", "invalid value: "];
    let rest = starts.iter().find_map(|start| message.strip_prefix(start));
    rest?.rsplit_once(", expected ")
}

/// Whether just this was expected under this key: a value of another kind there is told so too.
fn is_wanted(expected: &str, value: &Value, key: &str, parse: Parse<'_>) -> bool {
    let other = match expected {
        "a boolean" => Value::from(31_415_926),
        _ => Value::from(value.pointer(key) != Some(&Value::Bool(true))),
    };
    let mut changed = value.clone();
    match changed.pointer_mut(key) {
        Some(place) => place.clone_from(&other),
        None => return false,
    }
    let after = parse(changed).unwrap_or_default();
    parts(&after).is_some_and(|(found, then)| is_called(&other, found) && then == expected)
}

/// Whether messages name the value so.
fn is_called(value: &Value, found: &str) -> bool {
    match value {
        Value::Null => found == "null",
        Value::Bool(value) => found == format!("boolean `{value}`"),
        Value::Number(number) if number.is_f64() => found.starts_with("floating point"),
        Value::Number(number) => found == format!("integer `{number}`"),
        Value::String(text) => found == format!("string {text:?}"),
        Value::Array(_) => found == "sequence",
        Value::Object(_) => found == "map",
    }
}

/// The pointers to all values in a value, the inner before the outer.
fn list(value: &Value, at: String, keys: &mut Vec<String>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                list(value, format!("{at}/{key}"), keys);
            }
        }
        Value::Array(items) => {
            for (place, value) in items.iter().enumerate() {
                list(value, format!("{at}/{place}"), keys);
            }
        }
        _ => {}
    }
    if !at.is_empty() {
        keys.push(at);
    }
}

fn remove(value: &mut Value, key: &str) {
    let Some((outer, last)) = key.rsplit_once('/') else {
        return;
    };
    match value.pointer_mut(outer) {
        Some(Value::Object(table)) => {
            table.remove(last);
        }
        Some(Value::Array(items)) => {
            if let Ok(place) = last.parse::<usize>() {
                items.remove(place);
            }
        }
        _ => {}
    }
}

/// A message about a value in words that do not come from Rust; other messages stay as they are.
fn words(message: &str) -> String {
    if let Some(key) = message.strip_prefix("missing field ") {
        return format!("the key {key} is missing");
    }
    match parts(message) {
        Some((found, expected)) => {
            format!(
                "found {}, expected {}",
                of_found(found),
                of_expected(expected)
            )
        }
        None => message.into(),
    }
}

fn of_found(found: &str) -> String {
    match found {
        "map" => return "a table".into(),
        "sequence" => return "a list".into(),
        "null" | "unit value" => return "nothing".into(),
        _ => {}
    }
    let kinds = ["boolean ", "integer ", "floating point "];
    if let Some(value) = kinds.iter().find_map(|kind| found.strip_prefix(kind)) {
        return value.into();
    }
    match found.strip_prefix("string ") {
        Some(text) => format!("the text {text}"),
        None => found.into(),
    }
}

fn of_expected(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or larger",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "string or map" | "string or table" => "a text in quotes",
        "a sequence" => "a list",
        "a map" => "a table",
        _ if expected.starts_with("struct ") || expected.starts_with("internally tagged enum ") => {
            "a table"
        }
        _ if expected.starts_with("enum ") || expected.starts_with("variant ") => "a name",
        _ => expected,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Outer {
        name: String,
        rates: Vec<f64>,
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    #[expect(dead_code, reason = "only read")]
    enum Inner {
        Sized { size: usize, other: usize, on: bool },
    }

    fn message(key: &str, value: Value) -> String {
        let mut whole = json!({
            "name": "x", "rates": [1.0, 2.0],
            "inner": { "kind": "sized", "size": 3, "other": 4, "on": true },
        });
        *whole.pointer_mut(key).unwrap() = value;
        let text = ::toml::to_string(&whole).unwrap();
        let error = ::toml::from_str::<Outer>(&text).unwrap_err();
        toml::<Outer>(&error, &text)
    }

    #[test]
    fn a_wrong_value_is_told_with_its_key_and_in_plain_words() {
        for (key, value, expected) in [
            (
                "/name",
                json!(3),
                "`name`: found `3`, expected a text in quotes",
            ),
            (
                "/inner/size",
                json!("x"),
                "`inner.size`: found the text \"x\", expected a whole number",
            ),
            (
                "/inner/other",
                json!(-4),
                "`inner.other`: found `-4`, expected a whole number, 0 or larger",
            ),
            (
                "/inner/size",
                json!(2.5),
                "`inner.size`: found `2.5`, expected a whole number",
            ),
            (
                "/inner/on",
                json!("yes"),
                "`inner.on`: found the text \"yes\", expected true or false",
            ),
            (
                "/rates",
                json!([1.0, "x"]),
                "`rates.1`: found the text \"x\", expected a number",
            ),
            (
                "/rates",
                json!(true),
                "`rates`: found `true`, expected a list",
            ),
        ] {
            let found = message(key, value);
            assert!(found.contains(expected), "{found}");
            assert!(found.contains("line "), "{found}");
        }
    }

    #[test]
    fn a_value_that_stands_twice_is_blamed_where_it_is_wrong() {
        // `x` is a good name and no size.
        let found = message("/inner/other", json!("x"));
        assert!(found.contains("`inner.other`: found the text"), "{found}");
    }

    #[test]
    fn a_missing_key_and_other_messages_are_told_without_blame() {
        let error = ::toml::from_str::<Outer>("name = \"x\"").unwrap_err();
        let found = toml::<Outer>(&error, "name = \"x\"");
        assert!(found.ends_with("the key `rates` is missing"), "{found}");
        let broken = "name = ";
        let error = ::toml::from_str::<Outer>(broken).unwrap_err();
        assert!(toml::<Outer>(&error, broken).contains("line 1"));
    }
}
