//! Trials in processes of their own.

use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use report::RecordStore;
use report::record::{Record, Status};

use super::empty_record;
use crate::registry::Registry;
use crate::trial::Trial;

/// Runs trials; a sweep does not care how.
pub trait Executor {
    /// Runs a trial to its record, however it ends.
    ///
    /// # Errors
    /// If no record can be made or stored.
    fn run(&self, trial: &Trial, store: &RecordStore) -> Result<Record>;
}

/// Runs each trial in a process of its own.
pub struct Subprocess<'a> {
    /// The methods trials may name.
    pub registry: &'a Registry,
    /// Threads of the process.
    pub threads: Option<usize>,
    /// Whether it shows progress.
    pub quiet: bool,
}

impl Executor for Subprocess<'_> {
    fn run(&self, trial: &Trial, store: &RecordStore) -> Result<Record> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        let out = store
            .folder()
            .parent()
            .context("records lie in a study folder")?;
        command
            .arg("run-trial")
            .arg("--out")
            .arg(out)
            .stdin(Stdio::piped());
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        if self.quiet {
            command.arg("--quiet");
        }
        let mut child = command
            .spawn()
            .context("cannot start a process for the trial")?;
        let input = child.stdin.take().context("the process has no input")?;
        // One that dies before it has read this is a failed trial, as one that dies later is.
        let _ = serde_json::to_writer(input, trial);
        let status = child.wait()?;
        match store.find(&trial.hash)? {
            Some(record) if status.success() => Ok(record),
            _ => {
                let record = died(trial, self.registry, status)?;
                store.append(&record)?;
                Ok(record)
            }
        }
    }
}

/// The record of a trial whose process ended without writing one.
fn died(trial: &Trial, registry: &Registry, status: ExitStatus) -> Result<Record> {
    use std::os::unix::process::ExitStatusExt;
    // The kernel's out-of-memory killer sends signal 9; an allocation that fails aborts (6).
    let status = match status.signal() {
        Some(signal @ (6 | 9)) => Status::Oom {
            reason: format!(
                "the process was ended by signal {signal}: out of memory, or killed by hand"
            ),
        },
        _ => Status::Failed {
            reason: format!("the process ended early: {status}"),
        },
    };
    empty_record(trial, registry, status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    #[test]
    fn a_process_that_dies_before_it_has_read_its_trial_is_a_failed_trial() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/smoke.toml");
        let study = crate::study::Study::load(&file, &BTreeMap::new()).unwrap();
        let registry = Registry::builtin();
        let trials = crate::trial::expand(&study, &registry, "cpu", &BTreeMap::new()).unwrap();
        let mut trial = trials[0].clone();
        // More than a pipe holds. The program is that of the tests, which knows no `run-trial`.
        trial.question = "?".repeat(1 << 20);
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        let executor = Subprocess {
            registry: &registry,
            threads: None,
            quiet: true,
        };
        let record = executor.run(&trial, &store).unwrap();
        let reason = record.status.reason();
        assert!(reason.contains("the process ended early"), "{reason}");
        assert_eq!(store.find(&trial.hash).unwrap(), Some(record));
    }
}
