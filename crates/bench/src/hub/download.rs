//! Downloads: a listing of the repository, then each file into the cache, checked.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, anyhow};
use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use sha2::Digest;

use super::files::{self, Listing, Remote};
use super::{Failure, Hub, Kind, RepoId, Snapshot};
use crate::source::hex;

/// Times a file is asked for, each going on where the last broke off.
const ATTEMPTS: u32 = 3;
/// Longest wait for the hub to take a connection and to answer the first question.
const PATIENCE: Duration = Duration::from_secs(20);

impl Hub {
    /// Brings the cache up to date with the hub.
    pub(super) fn download(&self, id: &RepoId, kind: Kind) -> Result<Snapshot, Failure> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(self.progress)
            .build()
            .context("cannot set up downloads")?;
        let listing = self.listing(&api, id)?;
        // All files of one commit, even if somebody changes the repository meanwhile.
        let pinned = id.at(&listing.sha);
        let repo = api.repo(self.repo(&pinned));
        let folder = self.snapshot(id, &listing.sha);
        let file = |name: &str| {
            let remote = listing.get(name);
            let remote =
                remote.with_context(|| format!("its index names `{name}`, it has none"))?;
            self.file(&repo, id, &folder, remote)
        };
        for name in listing.wanted(kind)? {
            file(name)?;
            if name == files::INDEX {
                let shards = files::shards(&folder.join(name))?;
                shards.iter().try_for_each(|shard| file(shard))?;
            }
        }
        if !id.is_pinned() {
            let cache = Cache::new(self.cache.clone()).repo(self.repo(id));
            let written = cache.create_ref(&listing.sha);
            written.with_context(|| format!("cannot write to `{}`", self.cache.display()))?;
        }
        Ok(Snapshot { folder, id: pinned })
    }

    /// Commit and files of a revision.
    fn listing(&self, api: &Api, id: &RepoId) -> Result<Listing, Failure> {
        let request = api
            .repo(self.repo(id))
            .info_request()
            .query("blobs", "true");
        let request = request
            .config()
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE));
        let answer = request.build().call();
        let mut answer = answer.map_err(|error| Failure::Network(error.to_string()))?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(self.refusal(status, id, "the repository or this revision"));
        }
        let listing: Listing = answer
            .body_mut()
            .read_json()
            .map_err(|error| Failure::Network(format!("its answer breaks off: {error}")))?;
        if !super::id::is_commit(&listing.sha) {
            let sha = &listing.sha;
            return Err(anyhow!("`{}` answers with commit `{sha}`", self.endpoint).into());
        }
        Ok(listing)
    }

    fn refusal(&self, status: u16, id: &RepoId, what: &str) -> Failure {
        let (endpoint, name) = (&self.endpoint, id.name());
        let token = match self.token {
            Some(_) => "the token in use does not open it",
            None => "no token is set",
        };
        Failure::Refused(match status {
            401 | 403 => anyhow!(
                "`{endpoint}` answers {status}: `{name}` does not exist, or is private or gated, \
                 and {token}; check the name, accept the terms at {endpoint}/{name}, and set \
                 `HF_TOKEN` to a token with access (or run `hf auth login`)"
            ),
            404 => anyhow!("`{endpoint}` answers 404: it does not have {what}"),
            408 | 429 | 500.. => return Failure::Network(format!("it answers {status}")),
            _ => anyhow!("`{endpoint}` answers {status}"),
        })
    }

    /// Has a file in the snapshot's folder.
    fn file(
        &self,
        repo: &ApiRepo,
        id: &RepoId,
        folder: &Path,
        remote: &Remote,
    ) -> Result<(), Failure> {
        let place = folder.join(&remote.name);
        let size = std::fs::metadata(&place).ok().map(|found| found.len());
        match size {
            Some(size) if remote.size.is_none_or(|expected| expected == size) => return Ok(()),
            Some(_) => discard(&place),
            None => {}
        }
        let mut attempt = 1;
        loop {
            match self.once(repo, id, &place, remote) {
                Err(Failure::Network(_)) if attempt < ATTEMPTS => {
                    std::thread::sleep(Duration::from_millis(200) * attempt.pow(2));
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    fn once(
        &self,
        repo: &ApiRepo,
        id: &RepoId,
        place: &Path,
        remote: &Remote,
    ) -> Result<(), Failure> {
        let name = &remote.name;
        let path = repo.download(name).map_err(|error| {
            let failure = self.failure(error, id, remote);
            match failure {
                Failure::Network(reason) => Failure::Network(format!("`{name}`: {reason}")),
                Failure::Refused(error) => Failure::Refused(error.context(format!("`{name}`"))),
            }
        })?;
        if path != place {
            return Err(anyhow!("`{name}` comes from another commit than the listing").into());
        }
        check(place, remote).map_err(|reason| {
            discard(place);
            Failure::Network(format!("`{name}` {reason:#}"))
        })
    }

    /// Whether to try again, and if not, why.
    fn failure(&self, error: ApiError, id: &RepoId, remote: &Remote) -> Failure {
        match error {
            ApiError::RequestError(error) => {
                // The library does not export the type that holds the number.
                let text = error.to_string();
                let status = text.strip_prefix("http status: ");
                match status.and_then(|status| status.parse().ok()) {
                    // A part that is complete already: there is no byte after it.
                    Some(416) => self.without_part(id, remote, text),
                    Some(status) => self.refusal(status, id, "this file"),
                    None => Failure::Network(text),
                }
            }
            ApiError::InvalidResume => self.without_part(id, remote, error.to_string()),
            ApiError::IoError(error) => match error.kind() {
                ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::TimedOut
                | ErrorKind::Other => Failure::Network(error.to_string()),
                _ => Error::from(error)
                    .context(format!("cannot write to `{}`", self.cache.display()))
                    .into(),
            },
            ApiError::LockAcquisition(file) => anyhow!(
                "another process downloads it (it holds `{}`); wait for it and try again",
                file.display()
            )
            .into(),
            other => {
                let endpoint = &self.endpoint;
                anyhow!("`{endpoint}` does not answer as a hub does: {other}").into()
            }
        }
    }

    /// Removes what is left of an earlier download, so that the next attempt starts anew.
    fn without_part(&self, id: &RepoId, remote: &Remote, reason: String) -> Failure {
        let blobs = self.folder(id).join("blobs");
        let part = remote.blob().map(|blob| blobs.join(format!("{blob}.part")));
        match part.map(std::fs::remove_file) {
            Some(Ok(())) => Failure::Network(reason),
            _ => anyhow!("delete the `.part` files in `{}`", blobs.display()).into(),
        }
    }
}

/// Checks size and content of a downloaded file, as far as the hub tells them.
fn check(file: &Path, remote: &Remote) -> anyhow::Result<()> {
    let size = std::fs::metadata(file)?.len();
    if let Some(expected) = remote.size.filter(|expected| *expected != size) {
        anyhow::bail!("has {size} bytes, expected {expected}");
    }
    if let Some(expected) = remote.sha256() {
        let mut hasher = sha2::Sha256::new();
        std::io::copy(&mut std::fs::File::open(file)?, &mut hasher)?;
        let found = hex(&hasher.finalize());
        anyhow::ensure!(
            found == expected,
            "has SHA-256 {found}, expected {expected}"
        );
    }
    Ok(())
}

/// Removes a file of a snapshot and the content it points to.
fn discard(place: &Path) {
    // What cannot be removed shows as the error of the next attempt.
    let content = std::fs::canonicalize(place).ok();
    if let Some(content) = content.filter(|c| c.parent().is_some_and(|p| p.ends_with("blobs"))) {
        std::fs::remove_file(content).ok();
    }
    std::fs::remove_file(place).ok();
}
