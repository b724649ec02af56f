//! Processes that share a folder of results.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Ends this process when the one that started it ends, so that a killed sweep leaves no trial
/// running that the next sweep would run a second time. Does nothing where the system cannot.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: sets an attribute of this process; no memory is involved.
        #[allow(unsafe_code)]
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
    }
}

/// Holds a folder of results for one sweep until it is dropped.
#[derive(Debug)]
pub struct Claim(#[allow(dead_code)] File);

impl Claim {
    /// Claims a folder.
    ///
    /// # Errors
    /// If another process has it, or the folder cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let path = folder.join(".lock");
        let file =
            File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another sweep is writing to `{}`; wait for it or use `--out`",
                    folder.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = Claim::new(folder.path()).unwrap();
        let message = Claim::new(folder.path()).unwrap_err().to_string();
        assert!(message.contains("another sweep"), "{message}");
        drop(first);
        assert!(Claim::new(folder.path()).is_ok());
    }
}
