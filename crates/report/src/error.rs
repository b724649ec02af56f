//! What can go wrong between records and a report.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the record store or of the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A record file does not hold a record.
    #[error(
        "`{}` is not a record: {source}; expected the JSON of one finished trial, so repair the \
         file or move it out of the folder and run that trial again",
        path.display()
    )]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        source: serde_json::Error,
    },
    /// A record was written by a newer program.
    #[error(
        "`{}` has record format {found}, this program reads up to {supported}; use the program \
         that wrote it, or a newer one",
        path.display()
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The format version in the file.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// A finished trial was recorded a second time.
    #[error(
        "trial `{id}` already has a finished record in `{}`; records are never replaced, so delete \
         that file first if the trial is really to be run again",
        path.display()
    )]
    AlreadyRecorded {
        /// The trial.
        id: String,
        /// The record that is there.
        path: PathBuf,
    },
    /// A record would not survive being written and read again.
    #[error(
        "the record of trial `{id}` cannot be stored: {source}; every number outside the learning \
         curve must be finite (leave out a score that is not)"
    )]
    Unstorable {
        /// The trial.
        id: String,
        /// What the parser met when it read the record back.
        source: serde_json::Error,
    },
    /// There is nothing to report on.
    #[error("there are no records to report on; run at least one trial first")]
    NoRecords,
    /// The records do not rank by one metric.
    #[error(
        "trial `{first_id}` ranks by `{first}` but trial `{other_id}` by `{other}`; one report \
         compares one metric, so report on each study by itself"
    )]
    MixedMetrics {
        /// A trial.
        first_id: String,
        /// Its metric.
        first: String,
        /// A trial that disagrees.
        other_id: String,
        /// That trial's metric.
        other: String,
    },
    /// A plot could not be drawn.
    #[error("cannot draw plot `{plot}`: {reason}")]
    Plot {
        /// Name of the plot.
        plot: String,
        /// What the drawing library said.
        reason: String,
    },
    /// A table could not be written.
    #[error("cannot build `{file}`: {source}")]
    Csv {
        /// Name of the file.
        file: &'static str,
        /// The cause.
        source: ::csv::Error,
    },
    /// A page could not be written.
    #[error("cannot build `{file}`: {source}")]
    Template {
        /// Name of the file.
        file: &'static str,
        /// The cause.
        source: minijinja::Error,
    },
}

impl ReportError {
    /// A closure for `map_err` that names what was tried and on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
