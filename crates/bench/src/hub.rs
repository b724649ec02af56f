//! Models and adapters of the Hugging Face hub, through its cache: `hf://organisation/name`.
//!
//! A repository is taken at one commit. Only safetensors, configurations and tokenizers are
//! fetched. What the cache holds is used without the network where there is none.

mod download;
mod files;
mod id;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context, Error, Result, bail};
use hf_hub::{Cache, Repo, RepoType};

pub use files::Kind;
pub use id::RepoId;

/// Where repositories come from and where they are kept.
#[derive(Clone)]
pub struct Hub {
    /// The address of the hub.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// What opens gated and private repositories.
    pub token: Option<String>,
    /// Whether to do without the network.
    pub offline: bool,
    /// Whether downloads show bars on a terminal.
    pub progress: bool,
}

/// A repository's files in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder.
    pub folder: PathBuf,
    /// The repository at the commit the folder holds.
    pub id: RepoId,
}

/// Why a download did not come about.
enum Failure {
    /// The hub could not be reached or broke off; the cache may help.
    Network(String),
    /// The hub answered, or the disk failed; nothing else will help.
    Refused(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Hub {
    /// The hub that the environment names, by the variables Python's `huggingface_hub` reads.
    ///
    /// # Errors
    /// If neither a cache is named nor a home folder known.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let folder = |name: &str| set(name).map(PathBuf::from);
        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(folder("HOME")?.join(".cache/huggingface")));
        let cache = folder("HF_HUB_CACHE").or_else(|| Some(home.clone()?.join("hub")));
        let cache = cache.context("set `HF_HOME` to the folder for downloaded models")?;
        let file = folder("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let kept = || std::fs::read_to_string(file?).ok();
        let token = set("HF_TOKEN").or_else(kept);
        let token = token.map(|token| token.trim().to_string());
        let yes = |name: &str| {
            let value = set(name).unwrap_or_default().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: std::path::absolute(cache)?,
            token: token.filter(|token| !token.is_empty()),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            progress: true,
        })
    }

    /// The repository's files in a folder of the cache, downloaded where it lacks them.
    ///
    /// # Errors
    /// If the repository is not there, not open to this user or holds none of the kind, or if the
    /// network is needed and does not answer.
    pub fn fetch(&self, id: &RepoId, kind: Kind) -> Result<Snapshot> {
        if self.offline {
            return self
                .cached(id, kind)
                .map_err(|lacks| self.cold(id, &lacks, "`HF_HUB_OFFLINE` forbids to download it"));
        }
        if id.is_pinned() {
            // A commit never changes: there is nothing to ask for.
            let cached = self.cached(id, kind).ok();
            if let Some(whole) = cached.filter(|s| files::has_tokenizer(&s.folder, kind)) {
                return Ok(whole);
            }
        }
        match self.download(id, kind) {
            Ok(snapshot) => Ok(snapshot),
            Err(Failure::Refused(error)) => Err(error.context(format!("cannot take `{id}`"))),
            Err(Failure::Network(reason)) => self.fall_back(id, kind, &reason),
        }
    }

    fn fall_back(&self, id: &RepoId, kind: Kind, reason: &str) -> Result<Snapshot> {
        let endpoint = &self.endpoint;
        match self.cached(id, kind) {
            Ok(snapshot) => {
                let commit = snapshot.id.revision();
                eprintln!(
                    "note: no download from `{endpoint}` ({reason}); `{id}` is commit {commit} of \
                     the cache"
                );
                Ok(snapshot)
            }
            Err(lacks) => {
                let reason = format!("it cannot be downloaded from `{endpoint}`: {reason}");
                Err(self.cold(id, &lacks, &reason))
            }
        }
    }

    fn cold(&self, id: &RepoId, lacks: &Error, reason: &str) -> Error {
        anyhow::anyhow!(
            "`{id}` is not in the cache `{}` ({lacks:#}), and {reason}; run once with a network \
             to fill the cache, name a filled one in `HF_HUB_CACHE`, or give a local folder",
            self.cache.display()
        )
    }

    /// What the cache holds of the repository, if that is enough.
    fn cached(&self, id: &RepoId, kind: Kind) -> Result<Snapshot> {
        let commit = match id.is_pinned() {
            true => id.revision().to_string(),
            false => {
                let file = self.folder(id).join("refs").join(id.revision());
                let commit = std::fs::read_to_string(file).unwrap_or_default();
                commit.trim().to_string()
            }
        };
        if !id::is_commit(&commit) {
            bail!("it knows no revision `{}`", id.revision());
        }
        let folder = self.snapshot(id, &commit);
        match files::lacking(&folder, kind)? {
            Some(file) => bail!("`{file}` of commit {commit} is missing"),
            None => Ok(Snapshot {
                folder,
                id: id.at(&commit),
            }),
        }
    }

    fn repo(&self, id: &RepoId) -> Repo {
        Repo::with_revision(id.name().into(), RepoType::Model, id.revision().into())
    }

    fn folder(&self, id: &RepoId) -> PathBuf {
        self.cache.join(self.repo(id).folder_name())
    }

    fn snapshot(&self, id: &RepoId, commit: &str) -> PathBuf {
        let repo = Cache::new(self.cache.clone()).repo(self.repo(id));
        repo.pointer_path(commit)
    }
}
