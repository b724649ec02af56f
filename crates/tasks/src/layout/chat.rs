//! Chats: lists of who said what.

use serde_json::{Map, Value};

use super::{Role, Turn, optional};
use crate::TaskError;
use crate::error::listed;
use crate::read::{Row, Table, shortened};

/// Most turns of a chat; finding the assistant's turns in its text takes work by their square.
const MOST_TURNS: usize = 1000;

/// How one layout names the parts of a turn.
struct Names {
    /// Fields that may hold the chat; the first that is there does.
    chat: &'static [&'static str],
    role: &'static str,
    content: &'static str,
    roles: &'static [(&'static str, Role)],
}

const SHAREGPT: Names = Names {
    chat: &["conversations"],
    role: "from",
    content: "value",
    roles: &[
        ("system", Role::System),
        ("human", Role::User),
        ("user", Role::User),
        ("gpt", Role::Assistant),
        ("assistant", Role::Assistant),
    ],
};

const MESSAGES: Names = Names {
    chat: &["messages", "conversations", "chat"],
    role: "role",
    content: "content",
    roles: &[
        ("system", Role::System),
        ("user", Role::User),
        ("assistant", Role::Assistant),
    ],
};

pub(super) fn sharegpt(table: &Table, row: &Row) -> Result<Vec<Turn>, TaskError> {
    let mut turns = SHAREGPT.turns(table, row)?;
    if let Some(system) = optional(table, row, "system")? {
        if turns[0].role == Role::System {
            let reason = "a `system` field and a first turn from `system`; expected one of them";
            return Err(table.error(row, reason));
        }
        let content = system.to_string();
        turns.insert(
            0,
            Turn {
                role: Role::System,
                content,
            },
        );
    }
    Ok(turns)
}

pub(super) fn messages(table: &Table, row: &Row) -> Result<Vec<Turn>, TaskError> {
    MESSAGES.turns(table, row)
}

impl Names {
    /// The turns up to the last one of the assistant, behind which there is nothing to learn.
    fn turns(&self, table: &Table, row: &Row) -> Result<Vec<Turn>, TaskError> {
        let field = self
            .chat
            .iter()
            .find(|name| row.fields.get(**name).is_some_and(|value| !value.is_null()))
            .ok_or_else(|| table.missing(row, self.chat[0]))?;
        let Value::Array(list) = &row.fields[*field] else {
            let found = shortened(&row.fields[*field]);
            let reason = format!("field `{field}` is `{found}`; expected a list of turns");
            return Err(table.error(row, reason));
        };
        if list.len() > MOST_TURNS {
            let found = list.len();
            let reason = format!("`{field}` has {found} turns; expected at most {MOST_TURNS}");
            return Err(table.error(row, reason));
        }
        let mut turns = Vec::new();
        for (index, value) in list.iter().enumerate() {
            let turn = self.turn(value).map_err(|reason| {
                table.error(row, format!("turn {} of `{field}` {reason}", index + 1))
            })?;
            turns.push(turn);
        }
        let last = turns.iter().rposition(|turn| turn.role == Role::Assistant);
        let last = last.ok_or_else(|| {
            let reason = format!("`{field}` has no turn of the assistant; expected one to learn");
            table.error(row, reason)
        })?;
        turns.truncate(last + 1);
        Ok(turns)
    }

    fn turn(&self, value: &Value) -> Result<Turn, String> {
        let Value::Object(fields) = value else {
            let found = shortened(value);
            return Err(format!("is `{found}`; expected an object"));
        };
        // A call has its arguments elsewhere than in the text, and dropping them would teach
        // something else.
        let calls = ["tool_calls", "function_call"];
        if let Some(call) = calls
            .iter()
            .find(|key| fields.get(**key).is_some_and(filled))
        {
            return Err(format!("has `{call}`; only turns of text are supported"));
        }
        let role = self.part(fields, self.role)?;
        let known = || listed(self.roles.iter().map(|(name, _)| *name));
        let (_, role) = self
            .roles
            .iter()
            .find(|(name, _)| *name == role)
            .ok_or_else(|| format!("has the unknown role `{role}`; the roles are {}", known()))?;
        let content = self.part(fields, self.content)?;
        if content.trim().is_empty() {
            let key = self.content;
            return Err(format!("has an empty `{key}`; expected text"));
        }
        Ok(Turn {
            role: *role,
            content: content.to_string(),
        })
    }

    fn part<'a>(&self, fields: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
        match fields.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => {
                let found = shortened(other);
                Err(format!("has `{found}` for `{key}`; expected a text"))
            }
            None => {
                let known = listed(fields.keys().map(String::as_str));
                Err(format!("has no `{key}`; its keys are {known}"))
            }
        }
    }
}

/// Whether there is something in a value.
fn filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}
