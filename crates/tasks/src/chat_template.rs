//! Chats to text, by the template that comes with a model.
//!
//! Templates are Jinja as Python's `transformers` runs it: the same settings, functions and special
//! tokens (`tests/golden/chat` holds texts made by it).

mod builtin;
mod folder;
mod python;

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::{AutoEscape, Environment, Template, UndefinedBehavior, Value, context};

use crate::TaskError;
use crate::error::listed;
use crate::layout::{Role, Turn};

/// Steps a template may take for one text; one that never ends is an error.
const FUEL: u64 = 20_000_000;

/// A template and the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    name: String,
    source: String,
    tokens: BTreeMap<String, Value>,
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, else the one in
    /// `tokenizer_config.json`, else `chat_template.json`.
    ///
    /// # Errors
    /// If there is none, a file cannot be read, or the template is not valid.
    pub fn of_folder(folder: &Path) -> Result<Self, TaskError> {
        Self::find(folder)?.ok_or_else(|| TaskError::NoChatTemplate {
            place: format!("`{}`", folder.display()),
            known: listed(Self::builtins()),
        })
    }

    /// The template of a model folder, if it has one; see [`ChatTemplate::of_folder`].
    ///
    /// # Errors
    /// If a file cannot be read, or the template is not valid.
    pub fn find(folder: &Path) -> Result<Option<Self>, TaskError> {
        let source = folder::source(folder)?;
        let template = source.map(|(name, source)| Self::new(name, source, folder));
        template.transpose()
    }

    /// A built-in template by its name, or that of a file. The special tokens are the folder's.
    ///
    /// # Errors
    /// If there is no such template, a file cannot be read, or the template is not valid.
    pub fn chosen(choice: &str, folder: &Path) -> Result<Self, TaskError> {
        if let Some(source) = builtin::source(choice) {
            return Self::new(format!("`{choice}`"), source.to_string(), folder);
        }
        let path = Path::new(choice);
        if !path.is_file() {
            return Err(TaskError::ChatTemplate {
                name: format!("`{choice}`"),
                reason: format!(
                    "it is neither a file nor built in; built in are {}",
                    listed(Self::builtins())
                ),
            });
        }
        let source = folder::text(path)?;
        Self::new(format!("`{}`", path.display()), source, folder)
    }

    /// The names of the templates built in.
    pub fn builtins() -> impl Iterator<Item = &'static str> {
        builtin::TEMPLATES.iter().map(|(name, _)| *name)
    }

    /// The template's text, for a fingerprint.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a chat so far, and the start of the assistant's next turn.
    ///
    /// # Errors
    /// If the template refuses the chat.
    pub fn prompt(&self, turns: &[Turn]) -> Result<String, TaskError> {
        self.compile()?.prompt(turns)
    }

    /// What says that a turn of the assistant is over, if the template says so: the text behind the
    /// answer to a question.
    ///
    /// # Errors
    /// If the template refuses a question and its answer.
    pub fn end_of_turn(&self) -> Result<Option<String>, TaskError> {
        const ANSWER: &str = "answer";
        let turn = |role, content: &str| Turn {
            role,
            content: content.into(),
        };
        let turns = [turn(Role::User, "question"), turn(Role::Assistant, ANSWER)];
        let template = self.compile()?;
        let (asked, answered) = (template.prompt(&turns[..1])?, template.text(&turns)?);
        let added = answered.strip_prefix(&asked).unwrap_or_default();
        let behind = added.split_once(ANSWER).map(|(_, behind)| behind.trim());
        Ok(behind.filter(|mark| !mark.is_empty()).map(String::from))
    }

    /// Names the end token for a folder that does not.
    #[must_use]
    pub fn with_end_token(mut self, text: Option<String>) -> Self {
        if let Some(text) = text {
            let token = self.tokens.entry("eos_token".to_string());
            token.or_insert_with(|| text.into());
        }
        self
    }

    fn new(name: String, source: String, folder: &Path) -> Result<Self, TaskError> {
        let template = Self {
            name,
            source: python::without_generation_marks(&source),
            tokens: folder::special_tokens(folder)?,
            environment: environment(),
        };
        template.compile()?;
        Ok(template)
    }

    /// Makes the template ready to be used many times.
    pub(crate) fn compile(&self) -> Result<Compiled<'_>, TaskError> {
        let template = self
            .environment
            .template_from_named_str("chat template", &self.source)
            .map_err(|error| self.error(error.to_string()))?;
        Ok(Compiled {
            owner: self,
            template,
        })
    }

    /// An error that names the template.
    pub(crate) fn error(&self, reason: impl Into<String>) -> TaskError {
        TaskError::ChatTemplate {
            name: self.name.clone(),
            reason: reason.into(),
        }
    }
}

/// A template that is ready to be used many times.
pub(crate) struct Compiled<'a> {
    owner: &'a ChatTemplate,
    template: Template<'a, 'a>,
}

impl Compiled<'_> {
    /// The text of a chat so far, and the start of the assistant's next turn.
    pub(crate) fn prompt(&self, turns: &[Turn]) -> Result<String, TaskError> {
        self.render(turns, true)
    }

    /// The text of a chat that ends where it ends.
    pub(crate) fn text(&self, turns: &[Turn]) -> Result<String, TaskError> {
        self.render(turns, false)
    }

    /// The token that the template may start a text with.
    pub(crate) fn begins(&self) -> Option<&str> {
        self.owner.tokens.get("bos_token")?.as_str()
    }

    /// An error that names the template.
    pub(crate) fn error(&self, reason: impl Into<String>) -> TaskError {
        self.owner.error(reason)
    }

    fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, TaskError> {
        let messages = Value::from_serialize(turns);
        let tokens = Value::from_serialize(&self.owner.tokens);
        let none = Value::from(());
        let context = context! {
            messages, add_generation_prompt, tools => none, documents => none, ..tokens
        };
        self.template
            .render(context)
            .map_err(|error| self.owner.error(error.to_string()))
    }
}

/// Jinja as `transformers` sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(python::write_value);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::tojson);
    environment.add_function("raise_exception", python::raise_exception);
    environment.add_function("strftime_now", python::clock());
    environment
}

#[cfg(test)]
mod tests;
