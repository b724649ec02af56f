//! Errors of the harness that a reader should be able to act on.

use std::path::PathBuf;

/// What can be wrong with a study or an adapter before anything is run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A study file that does not parse or holds an unknown key.
    #[error("`{file}`: {reason}")]
    Study {
        /// The file.
        file: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// A method that the registry does not accept.
    #[error("method {place}: {reason}")]
    Method {
        /// Its place in the file, or its kind.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A variable of a study without a value.
    #[error(
        "the study uses `${{{name}}}`; give it with `--var {name}=VALUE` or in the environment"
    )]
    Variable {
        /// Its name.
        name: String,
    },
    /// Data and model that do not go together.
    #[error("{0}")]
    Mismatch(String),
}

/// Adds "did you mean" to a message about an unknown name, from the names the message quotes.
pub(crate) fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.contains("unknown field") || message.contains("unknown variant");
    let (Some(found), true) = (quoted.first(), unknown) else {
        return message.into();
    };
    let near = quoted[1..]
        .iter()
        .map(|known| (strsim::jaro_winkler(found, known), known))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message.into(),
    }
}

/// An error with its causes, each said once: many say their cause themselves.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_gets_the_nearest_known_one() {
        let message = with_suggestion("unknown field `rnak`, expected `rank` or `alpha`");
        assert!(message.ends_with("did you mean `rank`?"), "{message}");
    }

    #[test]
    fn other_messages_stay_as_they_are() {
        assert_eq!(with_suggestion("missing `rank`"), "missing `rank`");
    }

    #[test]
    fn a_cause_that_the_error_says_itself_is_not_said_again() {
        let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::new(peft_core::CoreError::io("a.txt", cause));
        let error = error.context("cannot start");
        assert_eq!(
            told(&error),
            "cannot start: cannot access `a.txt`: no such file"
        );
    }
}
