//! Errors of reading and writing checkpoints.

use std::path::PathBuf;

/// What can go wrong with a model folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The architecture is not one of those built in.
    #[error(
        "`{file}`: model type `{found}` is not supported; this version has gpt2, llama, mistral, qwen2, qwen3, bert, roberta, distilbert"
    )]
    Architecture {
        /// The configuration file.
        file: PathBuf,
        /// What it says.
        found: String,
    },
    /// A configuration value the model code does not implement.
    #[error("`{file}`: `{key}` is {found}, expected {expected}")]
    Config {
        /// The configuration file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// A JSON file that does not parse.
    #[error("`{file}` is not valid: {reason}")]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A checkpoint whose index makes no sense.
    #[error("`{file}`: {reason}")]
    Index {
        /// The index file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A model that holds more than a plain checkpoint has names for.
    #[error(
        "a plain checkpoint has no names for {parameters:?}; merge or leave out what adds them"
    )]
    Unnamed {
        /// The parameters.
        parameters: Vec<String>,
    },
    /// Tensors or files below the checkpoint.
    #[error(transparent)]
    Core(#[from] peft_core::CoreError),
}
