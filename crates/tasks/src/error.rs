//! What can go wrong between a file and a score.

use std::path::{Path, PathBuf};

/// A place in a file, written "`a.csv` line 3".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The file.
    pub path: PathBuf,
    /// What `number` counts.
    pub unit: Unit,
    /// From 1.
    pub number: usize,
}

/// What places in a file are counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Lines of text.
    #[default]
    Line,
    /// Rows of a file that has no lines.
    Row,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = match self.unit {
            Unit::Line => "line",
            Unit::Row => "row",
        };
        write!(f, "`{}` {unit} {}", self.path.display(), self.number)
    }
}

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file's contents are not what its format asks for.
    #[error("{at}: {reason}")]
    File {
        /// Where.
        at: At,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file holds no rows.
    #[error("`{}` has no rows; expected at least one example", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// A file's name does not tell its format.
    #[error(
        "`{}` does not tell its format by its name; expected `.jsonl`, `.json`, `.csv`, `.tsv` or \
         `.parquet`, or set the format",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A template or a label asks for a field that a row does not have.
    #[error("{at} has no field `{field}`; its fields are {known}")]
    MissingField {
        /// Where.
        at: At,
        /// The field asked for.
        field: String,
        /// The fields there are.
        known: String,
    },
    /// A template is not valid.
    #[error("the {name} template `{source_text}` is not valid: {reason}")]
    Template {
        /// `prompt`, `completion` or `text`.
        name: &'static str,
        /// The template.
        source_text: String,
        /// What the template engine said.
        reason: String,
    },
    /// A chat template is not valid, or does not do what training on it needs.
    #[error("the chat template of {name}: {reason}")]
    ChatTemplate {
        /// Where the template is from.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Chats without a template to write them by.
    #[error(
        "{place} has no chat template; add `chat_template` to its `tokenizer_config.json` or a \
         `chat_template.jinja` beside it, or set `chat_template` in the study to a file or one of \
         {known}"
    )]
    NoChatTemplate {
        /// The model folder.
        place: String,
        /// The templates built in.
        known: String,
    },
    /// A completion does not fit.
    #[error(
        "{at}: the completion has {found} tokens with its end token, more than `max_length` = \
         {most} leaves; raise `max_length` or set `overlong` to `truncate` or `skip`"
    )]
    Overlong {
        /// Where.
        at: At,
        /// Tokens of the completion.
        found: usize,
        /// Most tokens of an example.
        most: usize,
    },
    /// A limit leaves no room for what an example must hold.
    #[error("`max_length` = {found} is too small; expected at least {least}")]
    MaxLength {
        /// The limit given.
        found: usize,
        /// The smallest limit that works.
        least: usize,
    },
    /// A label is not among the known ones.
    #[error("{at}: unknown label `{label}`; the labels are {known}")]
    UnknownLabel {
        /// Where.
        at: At,
        /// The label found.
        label: String,
        /// The labels known.
        known: String,
    },
    /// The labels do not make a classification.
    #[error("{reason}")]
    Labels {
        /// What was found and what was expected.
        reason: String,
    },
    /// The tokenizer has no such token.
    #[error("the tokenizer has no token `{token}`; name one that its `tokenizer.json` lists")]
    UnknownToken {
        /// The token asked for.
        token: String,
    },
    /// The tokenizer reported an error.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A vocabulary is too small to be trained.
    #[error("a vocabulary of {found} cannot hold every byte; expected at least {least}")]
    Vocabulary {
        /// The size asked for.
        found: usize,
        /// The smallest size.
        least: usize,
    },
    /// Predictions and references do not pair up.
    #[error(
        "{found} predictions for {expected} references; expected as many of both, at least one"
    )]
    Unpaired {
        /// Number of predictions.
        found: usize,
        /// Number of references.
        expected: usize,
    },
    /// A class index is out of range.
    #[error("class {found} does not exist; there are {classes} classes, counted from 0")]
    UnknownClass {
        /// The index.
        found: usize,
        /// Number of classes.
        classes: usize,
    },
    /// A scenario of a number of topics that does not exist.
    #[error("a scenario of {found} topics; expected 1 to {most}")]
    ScenarioTopics {
        /// The number asked for.
        found: usize,
        /// The number of topics there are.
        most: usize,
    },
    /// A scenario with more questions than there are.
    #[error(
        "{part} asks for {asked} different questions and only {possible} were found; \
         ask for fewer or use more topics"
    )]
    ScenarioTooLarge {
        /// `train`, `dev` or `test`.
        part: &'static str,
        /// Questions asked for.
        asked: usize,
        /// Questions found.
        possible: usize,
    },
}

impl TaskError {
    /// Names the file an input or output error is about.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// Keeps the tokenizer library's message.
    pub(crate) fn tokenizer(error: tokenizers::Error) -> Self {
        Self::Tokenizer(error.to_string())
    }
}

/// "`a`, `b`" for messages; long lists are cut.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.len() {
        0 => "none".to_string(),
        1..=20 => names.join(", "),
        more => format!("{}, and {} more", names[..20].join(", "), more - 20),
    }
}
