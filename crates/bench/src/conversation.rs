//! A conversation, and how it is written for a model.

use std::path::Path;

use anyhow::Result;
use tasks::chat_template::ChatTemplate;
pub use tasks::layout::{Role, Turn};
use tasks::tokenizer::special_ids;
use tokenizers::Tokenizer;

/// What was said so far.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    messages: Vec<Turn>,
}

impl Conversation {
    /// A conversation that begins with what the model is told, if anything.
    pub fn new(system: Option<String>) -> Self {
        let role = Role::System;
        let message = |content| Turn { role, content };
        Self {
            messages: system.into_iter().map(message).collect(),
        }
    }

    /// All messages, the oldest first.
    pub fn messages(&self) -> &[Turn] {
        &self.messages
    }

    /// The conversation after this message.
    pub fn with(&self, role: Role, content: &str) -> Self {
        let mut messages = self.messages.clone();
        messages.push(Turn {
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

/// How conversations are written for a model, and what ends an answer in them: by its chat template,
/// or as `User: ...` and `Assistant: ...` where it has none.
pub struct Format {
    template: Option<ChatTemplate>,
    ending: Vec<u32>,
    stop: Vec<String>,
}

impl Format {
    /// The format of a model folder, or by the template chosen: a built-in one by its name, or a
    /// file. `ending` are the tokens that end the model's texts.
    ///
    /// # Errors
    /// If the template cannot be read or is not valid.
    pub fn of(
        folder: &Path,
        chosen: Option<&str>,
        tokenizer: &Tokenizer,
        mut ending: Vec<u32>,
    ) -> Result<Self> {
        let template = match chosen {
            Some(choice) => Some(ChatTemplate::chosen(choice, folder)?),
            None => ChatTemplate::find(folder)?,
        };
        let Some(template) = template else {
            return Ok(Self {
                template: None,
                ending,
                stop: vec!["\nUser:".into(), "\nSystem:".into()],
            });
        };
        let last = ending.first().and_then(|id| tokenizer.id_to_token(*id));
        let template = template.with_end_token(last);
        let mut stop = Vec::new();
        if let Some(mark) = template.end_of_turn()? {
            // An ordinary token of the same text may stand within an answer.
            let token = tokenizer.token_to_id(&mark);
            match token.filter(|id| special_ids(tokenizer).contains(id)) {
                Some(id) if ending.contains(&id) => {}
                Some(id) => ending.push(id),
                None => stop.push(mark),
            }
        }
        Ok(Self {
            template: Some(template),
            ending,
            stop,
        })
    }

    /// The conversation as the model reads it, up to where its answer begins.
    ///
    /// # Errors
    /// If the template refuses the conversation.
    pub fn render(&self, messages: &[Turn]) -> Result<Rendered> {
        if let Some(template) = &self.template {
            return Ok(Rendered {
                text: template.prompt(messages)?,
                special: false,
            });
        }
        let line = |message: &Turn| {
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

    /// The tokens that end an answer.
    pub fn ending(&self) -> &[u32] {
        &self.ending
    }

    /// Texts that end an answer or begin somebody else's turn, where no token does.
    pub fn stop_texts(&self) -> &[String] {
        &self.stop
    }

    /// What a user should know of the format.
    pub fn note(&self) -> Option<&'static str> {
        self.template.is_none().then_some(
            "note: the model has no chat template, so it reads `User: ...` and `Assistant: ...`; \
             `--chat-template` takes another",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
        let format = Format::of(folder.path(), None, &golden().1, vec![1]).unwrap();
        assert!(format.note().is_some());
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

    /// A model folder with a template, its tokenizer, and conversations as `transformers` writes them.
    fn golden() -> (PathBuf, Tokenizer, serde_json::Value) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat");
        let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
        let model = folder.join("model");
        let tokenizer = crate::source::read_tokenizer(&model).unwrap();
        (model, tokenizer, serde_json::from_str(&cases).unwrap())
    }

    #[test]
    fn a_model_with_a_template_reads_the_text_and_tokens_that_transformers_gives_it() {
        let (model, tokenizer, cases) = golden();
        let format = Format::of(&model, None, &tokenizer, vec![1]).unwrap();
        assert_eq!(format.note(), None);
        let cases = cases.as_array().unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let turns: Vec<Turn> = serde_json::from_value(case["turns"].clone()).unwrap();
            let rendered = format.render(&turns).unwrap();
            assert_eq!(rendered.text, case["text"]);
            let ids = tokenizer.encode(rendered.text, rendered.special).unwrap();
            assert_eq!(serde_json::json!(ids.get_ids()), case["ids"]);
        }
    }

    #[test]
    fn the_token_that_ends_a_turn_ends_an_answer_beside_those_that_end_texts() {
        let (model, tokenizer, _) = golden();
        let format = |chosen, ending| Format::of(&model, chosen, &tokenizer, ending).unwrap();
        let end_of_turn = tokenizer.token_to_id("<|im_end|>").unwrap();
        let own = format(None, vec![1]);
        assert_eq!(
            (own.ending(), own.stop_texts().len()),
            (&[1, end_of_turn][..], 0)
        );
        assert_eq!(format(None, vec![end_of_turn]).ending(), [end_of_turn]);
        // A mark that is no special token of this tokenizer ends an answer as a text.
        let other = format(Some("gemma"), vec![1]);
        assert_eq!(other.ending(), [1]);
        assert_eq!(other.stop_texts(), ["<end_of_turn>"]);
    }

    #[test]
    fn a_damaged_template_is_an_error_that_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
        let error = Format::of(folder.path(), None, &golden().1, vec![1]);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
    }
}
