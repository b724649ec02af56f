//! Files that are either whole or absent, however the program ends.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::error::ReportError;

/// Writes `bytes` to `path`, replacing what was there in one step.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(ReportError::io("create", folder))?;
    let file = staged(folder, bytes).map_err(ReportError::io("write", path))?;
    file.persist(path)
        .map_err(|e| ReportError::io("write", path)(e.error))?;
    Ok(())
}

/// Writes `bytes` to `path` unless something is there already; says whether it wrote.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<bool, ReportError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = staged(folder, bytes).map_err(ReportError::io("write", path))?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            sync_folder(folder).map_err(ReportError::io("write", path))?;
            Ok(true)
        }
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(ReportError::io("write", path)(e.error)),
    }
}

/// The bytes in a temporary file of the same folder, so that giving it its name is one step.
fn staged(folder: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    // A temporary file is private by default; what is kept should follow the user's umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Makes the new name itself survive a power cut, where the system can do that.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()
    } else {
        Ok(())
    }
}
