//! A conversation, and how it is written for a model.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Whoever set the model up.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What.
    pub content: String,
}

/// What was said so far.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    messages: Vec<Message>,
}

impl Conversation {
    /// A conversation that begins with what the model is told, if anything.
    pub fn new(system: Option<String>) -> Self {
        let role = Role::System;
        let message = |content| Message { role, content };
        Self {
            messages: system.into_iter().map(message).collect(),
        }
    }

    /// All messages, the oldest first.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The conversation after this message.
    pub fn with(&self, role: Role, content: &str) -> Self {
        let mut messages = self.messages.clone();
        messages.push(Message {
            role,
            content: content.into(),
        });
        Self { messages }
    }

    /// Drops the oldest turns until the conversation has at most so many tokens; returns it, its
    /// tokens and the number of messages dropped. None where its last message is too long alone.
    ///
    /// # Errors
    /// If `encode` fails.
    pub fn fitting(
        mut self,
        most: usize,
        encode: &dyn Fn(&Self) -> Result<Vec<u32>>,
    ) -> Result<Option<(Self, Vec<u32>, usize)>> {
        let before = self.messages.len();
        loop {
            let ids = encode(&self)?;
            if ids.len() <= most {
                let dropped = before - self.messages.len();
                return Ok(Some((self, ids, dropped)));
            }
            if !self.drop_oldest() {
                return Ok(None);
            }
        }
    }

    /// Drops the oldest message of the user with its answer, but never the last one.
    fn drop_oldest(&mut self) -> bool {
        let users = self.messages.iter().enumerate();
        let mut users = users.filter(|(_, message)| message.role == Role::User);
        match (users.next(), users.next()) {
            (Some((first, _)), Some((second, _))) => {
                self.messages.drain(first..second);
                true
            }
            _ => false,
        }
    }
}

/// A conversation as the model reads it.
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Whether the tokenizer is to add its special tokens; templates write them themselves.
    pub special: bool,
}

/// How conversations are written for a model.
///
/// This is where a model's own chat template plugs in: [`Format::of`] finds it in the folder
/// (`chat_template.jinja`, or `chat_template` of `tokenizer_config.json`) and [`Format::render`]
/// renders it, with `special` false. Until then every model gets `User: ...\nAssistant:`, and
/// [`Format::note`] says so where the folder has a template.
pub struct Format {
    has_template: bool,
}

impl Format {
    /// The format of a model folder.
    pub fn of(folder: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let config: serde_json::Value =
            serde_json::from_str(&read("tokenizer_config.json")).unwrap_or_default();
        Self {
            has_template: !read("chat_template.jinja").is_empty()
                || !config["chat_template"].is_null(),
        }
    }

    /// The conversation as the model reads it, up to where its answer begins.
    ///
    /// # Errors
    /// None in the plain format; a template may refuse a conversation.
    pub fn render(&self, messages: &[Message]) -> Result<Rendered> {
        let line = |message: &Message| {
            let name = match message.role {
                Role::System => "System",
                Role::User => "User",
                Role::Assistant => "Assistant",
            };
            format!("{name}: {}\n", message.content)
        };
        let lines: String = messages.iter().map(line).collect();
        Ok(Rendered {
            text: lines + "Assistant:",
            special: true,
        })
    }

    /// Texts that begin somebody else's turn, where no token ends one.
    pub fn stop_texts(&self) -> Vec<String> {
        vec!["\nUser:".into(), "\nSystem:".into()]
    }

    /// What a user should know of the format.
    pub fn note(&self) -> Option<String> {
        self.has_template.then(|| {
            "note: the model's chat template is not used; it reads `User: ...` and `Assistant: ...`"
                .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(turns: usize) -> Conversation {
        let start = Conversation::new(Some("short".into()));
        (0..turns).fold(start, |conversation, turn| {
            let conversation = conversation.with(Role::User, &format!("question {turn}"));
            match turn + 1 == turns {
                true => conversation,
                false => conversation.with(Role::Assistant, &format!("answer {turn}")),
            }
        })
    }

    fn text(conversation: &Conversation) -> String {
        let folder = tempfile::tempdir().unwrap();
        let format = Format::of(folder.path());
        assert_eq!(format.note(), None);
        format.render(conversation.messages()).unwrap().text
    }

    /// A token a byte.
    fn encode(conversation: &Conversation) -> Result<Vec<u32>> {
        Ok(text(conversation).bytes().map(u32::from).collect())
    }

    #[test]
    fn the_plain_format_names_who_speaks_and_ends_where_the_answer_begins() {
        let expected = "System: short\nUser: question 0\nAssistant: answer 0\nUser: question 1\n\
                        Assistant:";
        assert_eq!(text(&conversation(2)), expected);
    }

    #[test]
    fn the_oldest_turns_go_first_and_the_systems_message_stays() {
        let long = conversation(5);
        let most = encode(&conversation(3)).unwrap().len();
        let (kept, ids, dropped) = long.fitting(most, &encode).unwrap().unwrap();
        assert_eq!((dropped, ids.len()), (4, most));
        let contents: Vec<_> = kept.messages().iter().map(|m| m.content.as_str()).collect();
        let expected = [
            "short",
            "question 2",
            "answer 2",
            "question 3",
            "answer 3",
            "question 4",
        ];
        assert_eq!(contents, expected);
    }

    #[test]
    fn a_message_that_is_too_long_alone_has_no_fitting_conversation() {
        let least = encode(&conversation(1)).unwrap().len();
        let fits = |most| conversation(1).fitting(most, &encode).unwrap().is_some();
        assert!(fits(least) && !fits(least - 1));
    }

    #[test]
    fn a_template_that_is_not_used_is_mentioned() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokenizer_config.json");
        std::fs::write(&file, r#"{ "chat_template": "{{ messages }}" }"#).unwrap();
        assert!(Format::of(folder.path()).note().is_some());
        std::fs::remove_file(file).unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
        assert!(Format::of(folder.path()).note().is_some());
    }
}
