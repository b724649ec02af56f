//! Names of repositories on a hub.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Error, Result, bail, ensure};

/// What a name of the hub starts with.
const SCHEME: &str = "hf://";
/// The revision of a name that gives none.
const MAIN: &str = "main";
/// Most characters of a repository's name, as the hub has it.
const LONGEST: usize = 96;

/// A repository at a revision: `hf://organisation/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    name: String,
    revision: String,
}

impl RepoId {
    /// The repository a path names, or none where it is an ordinary path.
    ///
    /// # Errors
    /// If it starts as a name of the hub but is none that can exist.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        match path.to_str() {
            Some(text) if text.starts_with(SCHEME) => text.parse().map(Some),
            _ => Ok(None),
        }
    }

    /// `organisation/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last part of the name.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The same repository at another revision.
    pub fn at(&self, revision: &str) -> Self {
        Self {
            name: self.name.clone(),
            revision: revision.into(),
        }
    }

    /// Whether the revision is a whole commit hash, which never changes its meaning.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// Whether this is a whole commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.name, self.revision)
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "expected `hf://organisation/name`, or `hf://organisation/name@revision`";
        let Some(rest) = text.strip_prefix(SCHEME) else {
            bail!("`{text}` is no name of the hub; {expected}");
        };
        let (name, revision) = rest.split_once('@').unwrap_or((rest, MAIN));
        let parts: Vec<&str> = name.split('/').collect();
        ensure!(
            parts.len() <= 2 && parts.iter().all(|part| is_name(part)) && name.len() <= LONGEST,
            "`{text}` is no name of the hub; {expected}, of letters, digits, `-`, `_` and `.`"
        );
        let steps = revision.split('/').all(is_step);
        ensure!(
            steps && revision.len() <= LONGEST,
            "`{revision}` in `{text}` is no revision; expected a branch, a tag or a commit"
        );
        Ok(Self {
            name: name.into(),
            revision: revision.into(),
        })
    }
}

/// Whether the hub allows this as the name of an organisation or a repository.
fn is_name(part: &str) -> bool {
    is_step(part) && !part.contains("--") && !part.ends_with(['.', '-'])
}

/// Whether this is one step of a path that leads nowhere but down.
fn is_step(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty()
        && part.chars().all(allowed)
        && !part.contains("..")
        && !part.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RepoId> {
        text.parse()
    }

    #[test]
    fn a_name_may_leave_out_organisation_and_revision() {
        let id = parse("hf://gpt2").unwrap();
        assert_eq!((id.name(), id.revision()), ("gpt2", "main"));
        let id = parse("hf://org/na.me_1@refs/pr/3").unwrap();
        assert_eq!((id.name(), id.revision()), ("org/na.me_1", "refs/pr/3"));
        assert_eq!(id.short_name(), "na.me_1");
        assert_eq!(parse(&id.to_string()).unwrap(), id);
    }

    #[test]
    fn names_that_cannot_exist_are_refused() {
        let bad = [
            "hf://",
            "hf:///x",
            "hf://../../x",
            "hf://../x",
            "hf://a/b/c",
            "hf://a b/c",
            "hf://a/.hidden",
            "hf://a/b@",
            "hf://a/b@../../main",
            "hf://a/b@/main",
            "hf://a/b@x y",
            "hf://a/b?c",
            "hf://a\\b",
            "hf://a--b/c",
            "hf://-a/b",
            "hf://a/b%2f..",
            "hf://a/",
        ];
        for text in bad {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("expected"), "{text}: {error}");
        }
        assert!(parse(&format!("hf://{}", "a".repeat(97))).is_err());
    }

    #[test]
    fn an_ordinary_path_is_no_name_of_the_hub() {
        assert_eq!(RepoId::of(Path::new("out/hf://x")).unwrap(), None);
        assert!(RepoId::of(Path::new("hf://gpt2")).unwrap().is_some());
        assert!(RepoId::of(Path::new("hf://a/../b")).is_err());
    }

    #[test]
    fn only_a_whole_commit_is_pinned() {
        assert!(
            parse(&format!("hf://a/b@{}", "0a".repeat(20)))
                .unwrap()
                .is_pinned()
        );
        assert!(!parse("hf://a/b@0a0a0a").unwrap().is_pinned());
        assert!(!parse("hf://a/b").unwrap().is_pinned());
    }
}
