//! Errors of the interface crate.

use std::path::PathBuf;

/// What can go wrong when a method meets a model, or a file meets either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// A target in a method's configuration names no layer of the model.
    #[error("target `{target}` matches no layer of this model; it has {known}")]
    NoSuchTarget {
        /// What was asked for.
        target: String,
        /// What the model has.
        known: String,
    },
    /// A configuration value makes no sense.
    #[error("`{key}` is {found}, expected {expected}")]
    BadValue {
        /// The key as the configuration spells it.
        key: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A part of a composition that cannot be used.
    #[error("`parts[{index}]`: {reason}")]
    Part {
        /// Its place among the parts, from 0.
        index: usize,
        /// What is wrong with it.
        reason: Box<CoreError>,
    },
    /// What the harness found wrong, in its words.
    #[error("{0}")]
    Told(String),
    /// The model offers no place for this method.
    #[error("{method} needs {needs}, which this model does not have")]
    NoSeam {
        /// The method.
        method: String,
        /// What it needs.
        needs: String,
    },
    /// The device string is not understood, or names a backend that was not built in.
    #[error("device `{device}`: {reason}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// A checkpoint does not fit the model; every mismatch is listed.
    #[error("`{file}` does not fit the model:\n  {}", problems.join("\n  "))]
    Mismatch {
        /// The file.
        file: String,
        /// One line per tensor.
        problems: Vec<String>,
    },
    /// A safetensors file that cannot be read.
    #[error("`{file}` is not a readable safetensors file: {reason}")]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("cannot access `{file}`: {source}")]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl CoreError {
    /// A configuration value that makes no sense.
    pub fn bad_value(key: &str, found: impl std::fmt::Display, expected: &str) -> Self {
        Self::BadValue {
            key: key.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// What is wrong with the part at this place of a composition.
    pub fn part(index: usize, reason: CoreError) -> Self {
        let reason = Box::new(reason);
        Self::Part { index, reason }
    }

    /// An I/O error on `file`.
    pub fn io(file: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            file: file.into(),
            source,
        }
    }
}
