//! Model folders for tests that damage them.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use models::ModelError;
use peft_core::Init;
use tempfile::TempDir;

/// A model folder of the golden tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// A copy of a model folder, to be damaged.
pub(crate) fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    folder
}

/// Reads a folder.
pub(crate) fn load(folder: &Path) -> Result<models::Loaded, ModelError> {
    models::load(folder, None, &mut Init::new(0, &Device::flex()))
}
