//! What a model folder says of chats: its template and its special tokens.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use minijinja::Value as TemplateValue;
use serde_json::{Map, Value};

use crate::TaskError;
use crate::error::{At, Unit};

/// Most bytes of a file of settings.
const MOST_BYTES: u64 = 64 << 20;

/// The template of a folder and what to call it, if there is one.
pub(super) fn source(folder: &Path) -> Result<Option<(String, String)>, TaskError> {
    let named = |file: &str| format!("`{}`", folder.join(file).display());
    let jinja = "chat_template.jinja";
    if folder.join(jinja).is_file() {
        let text = text(&folder.join(jinja))?;
        return Ok(Some((named(jinja), text)));
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let settings = settings(&folder.join(file))?;
        match settings.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(value) => {
                let source = one(value).map_err(|reason| TaskError::ChatTemplate {
                    name: named(file),
                    reason,
                })?;
                return Ok(Some((named(file), source)));
            }
        }
    }
    Ok(None)
}

/// A template, or the one called `default` of several.
fn one(value: &Value) -> Result<String, String> {
    let list = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(list) => list,
        _ => return Err("`chat_template` is neither a text nor a list of named texts".into()),
    };
    let default = list.iter().find(|entry| entry["name"] == "default");
    match default.map(|entry| &entry["template"]) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err("the template called `default` has no text `template`".into()),
        None => Err(
            "none of its templates is called `default`; name the file of one in the \
                     study's `chat_template`"
                .into(),
        ),
    }
}

/// The special tokens under the names that templates use.
pub(super) fn special_tokens(folder: &Path) -> Result<BTreeMap<String, TemplateValue>, TaskError> {
    let mut tokens = BTreeMap::new();
    // The newer file last, as it counts where they differ.
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let settings = settings(&folder.join(file))?;
        let extra = settings.get("extra_special_tokens");
        let extra = extra.and_then(Value::as_object).into_iter().flatten();
        let own = settings.iter().filter(|(key, _)| key.ends_with("_token"));
        for (key, value) in own.chain(extra) {
            // Either the text or an object with it.
            let text = value.as_str().or_else(|| value["content"].as_str());
            if let Some(text) = text {
                tokens.insert(key.clone(), text.into());
            }
        }
    }
    Ok(tokens)
}

/// A file's JSON object; an empty one where there is no file.
fn settings(path: &Path) -> Result<Map<String, Value>, TaskError> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    serde_json::from_str(&text(path)?).map_err(|error| TaskError::File {
        at: At {
            path: path.to_path_buf(),
            unit: Unit::Line,
            number: error.line().max(1),
        },
        reason: format!("{error}; expected a JSON object"),
    })
}

/// A file's text.
pub(super) fn text(path: &Path) -> Result<String, TaskError> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(TaskError::io(path))?;
    file.take(MOST_BYTES)
        .read_to_string(&mut text)
        .map_err(TaskError::io(path))?;
    Ok(text)
}
