//! The record store: an append-only folder with one JSON file per finished trial.
//!
//! A record's file is `records/<trial id>--<first 12 of the hash>.json`. A trial that ended badly
//! may be run again, and so may one that another build of the program ran; its next record goes beside
//! the first as `...-2.json`. Reading prefers a finished record to a failed one of the same build, and a
//! later to an earlier one. Nothing is ever overwritten.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::atomic;
use crate::error::ReportError;
use crate::record::{Record, SCHEMA};

/// Characters of the hash that go into a file name.
const HASH_CHARS: usize = 12;

/// A folder of records.
#[derive(Clone, Debug)]
pub struct RecordStore {
    folder: PathBuf,
}

impl RecordStore {
    /// Opens the store in `dir`, creating `dir/records` if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, ReportError> {
        let folder = dir.as_ref().join("records");
        fs::create_dir_all(&folder).map_err(ReportError::io("create", &folder))?;
        Ok(Self { folder })
    }

    /// The folder the record files are in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds a record and returns its file; the file is whole or absent, however the program ends.
    ///
    /// # Errors
    /// If the trial already has a record of this program that ended well, if the record holds a number
    /// that JSON cannot, or if the file cannot be written.
    pub fn append(&self, record: &Record) -> Result<PathBuf, ReportError> {
        let bytes = encode(record)?;
        let attempts = self.attempts(&record.trial.hash)?;
        if let Some((path, kept)) = standing(attempts)
            && is_settled_by(&kept, record)
        {
            return Err(ReportError::AlreadyRecorded {
                id: record.trial.id.clone(),
                path,
            });
        }
        let stem = stem(&record.trial.id, &record.trial.hash);
        for attempt in 1_u32.. {
            let name = if attempt == 1 {
                stem.clone()
            } else {
                format!("{stem}-{attempt}")
            };
            let path = self.folder.join(format!("{name}.json"));
            if atomic::create(&path, &bytes)? {
                return Ok(path);
            }
        }
        unreachable!("a folder cannot hold four billion attempts at one trial")
    }

    /// Whether any record of the trial with this hash is there, however it ended.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn has(&self, hash: &str) -> Result<bool, ReportError> {
        let tail = hash_tail(hash);
        Ok(self
            .files()?
            .iter()
            .any(|path| base_stem(path).ends_with(&tail)))
    }

    /// The record of the trial with this hash: the last that ended well, else the last; where another
    /// build of the program ran it later, that one's.
    ///
    /// # Errors
    /// If the folder or a file of that trial cannot be read.
    pub fn find(&self, hash: &str) -> Result<Option<Record>, ReportError> {
        Ok(standing(self.attempts(hash)?).map(|(_, record)| record))
    }

    /// Every record of the trial with this hash, in the order in which they were made.
    fn attempts(&self, hash: &str) -> Result<Vec<(PathBuf, Record)>, ReportError> {
        let tail = hash_tail(hash);
        let mut found: Vec<_> = self
            .files()?
            .into_iter()
            .filter(|path| base_stem(path).ends_with(&tail))
            .collect();
        found.sort_by_key(|path| attempt(path));
        let mut records = Vec::new();
        for path in found {
            let record = read(&path)?;
            if record.trial.hash == hash {
                records.push((path, record));
            }
        }
        // A trial that was named otherwise has files of another name; the sort is stable.
        records.sort_by(|(_, a), (_, b)| a.environment.started.cmp(&b.environment.started));
        Ok(records)
    }

    /// Every trial's record, by first appearance of its label, then learning rate, then seed.
    ///
    /// # Errors
    /// If a file cannot be read, is not a record, or is of a newer format; the error names it.
    pub fn load_all(&self) -> Result<Vec<Record>, ReportError> {
        let mut files = self.files()?;
        files.sort_by_key(|path| (base_stem(path).to_owned(), attempt(path)));
        let records = files.iter().map(|path| read(path));
        let mut records = records.collect::<Result<Vec<_>, _>>()?;
        records.sort_by(|a, b| a.environment.started.cmp(&b.environment.started));
        let mut kept: Vec<Record> = Vec::with_capacity(records.len());
        let mut place: HashMap<String, usize> = HashMap::new();
        for record in records {
            match place.get(&record.trial.hash) {
                None => {
                    place.insert(record.trial.hash.clone(), kept.len());
                    kept.push(record);
                }
                Some(&i) if supersedes(&record, &kept[i]) => kept[i] = record,
                Some(_) => {}
            }
        }
        Ok(in_order(kept))
    }

    fn files(&self) -> Result<Vec<PathBuf>, ReportError> {
        let failed = || ReportError::io("read", &self.folder);
        let entries = fs::read_dir(&self.folder).map_err(failed())?;
        let paths = entries
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed())?;
        // Temporary files of a write that was cut short have no `.json` and are passed over.
        Ok(paths
            .into_iter()
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .collect())
    }
}

/// The one of a trial's records, in the order in which they were made, that stands for it.
fn standing(attempts: Vec<(PathBuf, Record)>) -> Option<(PathBuf, Record)> {
    let later =
        |kept: (PathBuf, Record), next: (PathBuf, Record)| match supersedes(&next.1, &kept.1) {
            true => next,
            false => kept,
        };
    attempts.into_iter().reduce(later)
}

/// Whether a trial that has this record needs no other: what another build computes may differ.
fn is_settled_by(kept: &Record, next: &Record) -> bool {
    kept.status.is_ok() && !is_of_another_build(kept, next)
}

/// Whether a later record of a trial stands for it instead of an earlier one.
fn supersedes(next: &Record, kept: &Record) -> bool {
    next.status.is_ok() || !kept.status.is_ok() || is_of_another_build(kept, next)
}

fn is_of_another_build(kept: &Record, next: &Record) -> bool {
    kept.environment.program != next.environment.program
}

/// Sorts by first appearance of the label in time, then learning rate, then seed.
fn in_order(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by(|a, b| a.environment.started.cmp(&b.environment.started));
    let mut rank: HashMap<String, usize> = HashMap::new();
    for record in &records {
        let next = rank.len();
        rank.entry(record.trial.label.clone()).or_insert(next);
    }
    records.sort_by(|a, b| {
        (rank[&a.trial.label].cmp(&rank[&b.trial.label]))
            .then(a.trial.learning_rate.total_cmp(&b.trial.learning_rate))
            .then(a.trial.seed.cmp(&b.trial.seed))
    });
    records
}

/// The record as JSON, proven readable: a number that is not finite would be written as `null`.
fn encode(record: &Record) -> Result<Vec<u8>, ReportError> {
    let id = || record.trial.id.clone();
    let unstorable = |source| ReportError::Unstorable { id: id(), source };
    let mut bytes = serde_json::to_vec_pretty(record).map_err(unstorable)?;
    serde_json::from_slice::<Record>(&bytes)
        .map_err(|source| ReportError::Unstorable { id: id(), source })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The version alone, so that a newer format is told from a damaged file.
#[derive(Deserialize)]
struct Versioned {
    schema: u32,
}

fn read(path: &Path) -> Result<Record, ReportError> {
    let bytes = fs::read(path).map_err(ReportError::io("read", path))?;
    let bad = |source| ReportError::BadRecord {
        path: path.to_path_buf(),
        source,
    };
    let found = serde_json::from_slice::<Versioned>(&bytes)
        .map_err(bad)?
        .schema;
    if found > SCHEMA {
        return Err(ReportError::NewerSchema {
            path: path.to_path_buf(),
            found,
            supported: SCHEMA,
        });
    }
    serde_json::from_slice(&bytes).map_err(bad)
}

fn stem(id: &str, hash: &str) -> String {
    // An id may hold what a file name must not; the hash keeps the names apart all the same.
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let id: String = id.chars().map(safe).collect();
    format!("{}{}", id.trim_start_matches('.'), hash_tail(hash))
}

fn hash_tail(hash: &str) -> String {
    format!("--{}", hash.chars().take(HASH_CHARS).collect::<String>())
}

/// The file's name without its extension and without the number of the attempt.
fn base_stem(path: &Path) -> &str {
    let stem = path
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    split_attempt(stem).map_or(stem, |(base, _)| base)
}

fn attempt(path: &Path) -> u32 {
    let stem = path
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    split_attempt(stem).map_or(1, |(_, n)| n)
}

fn split_attempt(stem: &str) -> Option<(&str, u32)> {
    let (base, number) = stem.rsplit_once('-')?;
    // `--<hash>` alone may be all digits too: what is left must itself end in a hash.
    let is_hash = base
        .rsplit_once("--")
        .is_some_and(|(_, h)| !h.is_empty() && !h.ends_with('-'));
    is_hash.then_some(base).zip(number.parse().ok())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
