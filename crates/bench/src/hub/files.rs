//! Which files of a repository are wanted, and whether a folder has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::id::is_commit;

/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// Which of several files holds which weight.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// What the model is, without which nothing can be done.
const CONFIG: &str = "config.json";
/// Beside configuration and weights, where the repository has them.
const BESIDE: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];
/// Descriptions of adapters: the libraries' and this program's.
const DESCRIPTIONS: [&str; 2] = ["adapter_config.json", "adapter.json"];
/// Weights of adapters: PEFT's, this program's and AdapterHub's.
const ADAPTERS: [&str; 3] = [
    "adapter_model.safetensors",
    "adapter.safetensors",
    "pytorch_adapter.bin",
];
/// Heads that AdapterHub keeps beside an adapter.
const HEADS: [&str; 3] = [
    "head_config.json",
    "model_head.safetensors",
    "pytorch_model_head.bin",
];

/// What a repository is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A base model with its tokenizer.
    Model,
    /// A trained adapter.
    Adapter,
}

/// What the hub says of a repository at a revision.
#[derive(Deserialize)]
pub(super) struct Listing {
    /// The commit the revision stands for.
    pub(super) sha: String,
    /// Its files.
    pub(super) siblings: Vec<Remote>,
}

/// A file of the hub.
#[derive(Clone, Deserialize)]
pub(super) struct Remote {
    /// Its path in the repository.
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    /// Bytes, where the hub tells.
    #[serde(default)]
    pub(super) size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Clone, Deserialize)]
struct Lfs {
    #[serde(default)]
    sha256: Option<String>,
}

impl Remote {
    /// SHA-256 of a large file, where the hub tells.
    pub(super) fn sha256(&self) -> Option<&str> {
        let sha256 = self.lfs.as_ref()?.sha256.as_deref()?;
        let hex = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then_some(sha256)
    }

    /// The name the cache keeps its content under, where the hub tells.
    pub(super) fn blob(&self) -> Option<&str> {
        let blob = self.blob.as_deref().filter(|blob| is_commit(blob));
        self.sha256().or(blob)
    }
}

impl Listing {
    /// The file of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Remote> {
        self.siblings.iter().find(|file| file.name == name)
    }

    fn has(&self, name: &&'static str) -> bool {
        self.get(name).is_some()
    }

    /// The names of the wanted files; of weights in several files only their index.
    ///
    /// # Errors
    /// If the repository holds none of the kind.
    pub(super) fn wanted(&self, kind: Kind) -> Result<Vec<&'static str>> {
        match kind {
            Kind::Model => self.wanted_model(),
            Kind::Adapter => self.wanted_adapter(),
        }
    }

    fn wanted_model(&self) -> Result<Vec<&'static str>> {
        ensure!(
            self.has(&CONFIG),
            "it has no `{CONFIG}`; expected a model as `transformers` keeps it"
        );
        let Some(weights) = [SINGLE, INDEX].into_iter().find(|name| self.has(name)) else {
            self.refuse_pickles(SINGLE)?;
            bail!("it has neither `{SINGLE}` nor `{INDEX}`");
        };
        let beside = BESIDE.into_iter().filter(|name| self.has(name));
        Ok([CONFIG]
            .into_iter()
            .chain(beside)
            .chain([weights])
            .collect())
    }

    fn wanted_adapter(&self) -> Result<Vec<&'static str>> {
        let mut wanted: Vec<_> = DESCRIPTIONS.into_iter().filter(|n| self.has(n)).collect();
        ensure!(
            !wanted.is_empty(),
            "it has none of `{}`; expected an adapter",
            DESCRIPTIONS.join("`, `")
        );
        let Some(weights) = ADAPTERS.into_iter().find(|name| self.has(name)) else {
            self.refuse_pickles(ADAPTERS[0])?;
            bail!("it has none of `{}`", ADAPTERS.join("`, `"));
        };
        wanted.extend(HEADS.into_iter().filter(|name| self.has(name)));
        wanted.push(weights);
        Ok(wanted)
    }

    /// Says so where the weights are there, but as a program that could do anything when read.
    fn refuse_pickles(&self, expected: &str) -> Result<()> {
        let pickle = |name: &str| !name.contains('/') && name.ends_with(".bin");
        match self.siblings.iter().find(|file| pickle(&file.name)) {
            None => Ok(()),
            Some(file) => bail!(
                "it has its weights as a PyTorch pickle only (`{}`); expected `{expected}`: take \
                 a revision with safetensors (often `@refs/pr/1`), or convert it with Python's \
                 `save_pretrained`",
                file.name
            ),
        }
    }
}

/// The files an index names, each a plain name of the index's own folder.
///
/// # Errors
/// If the index is damaged, or a name leads elsewhere.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index)
        .with_context(|| format!("cannot read `{}`", index.display()))?;
    let parsed: Index =
        serde_json::from_str(&text).with_context(|| format!("`{}` is damaged", index.display()))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let plain = |name: &String| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        name.chars().all(allowed) && !name.starts_with('.') && name.ends_with(".safetensors")
    };
    if let Some(shard) = shards.iter().find(|name| !plain(name)) {
        bail!(
            "`{}` names `{shard}`, expected the plain name of a safetensors file",
            index.display()
        );
    }
    Ok(shards)
}

/// The first file that a folder lacks for this kind, if any.
///
/// # Errors
/// As [`shards`].
pub(super) fn lacking(folder: &Path, kind: Kind) -> Result<Option<String>> {
    let any = |names: &[&'static str]| names.iter().any(|name| folder.join(name).exists());
    Ok(match kind {
        Kind::Adapter if !any(&DESCRIPTIONS) => Some(DESCRIPTIONS[0].into()),
        Kind::Adapter if !any(&ADAPTERS) => Some(ADAPTERS[0].into()),
        Kind::Adapter => None,
        Kind::Model if !any(&[CONFIG]) => Some(CONFIG.into()),
        // What reads the folder prefers the index, too.
        Kind::Model if any(&[INDEX]) => {
            let mut shards = shards(&folder.join(INDEX))?.into_iter();
            shards.find(|shard| !folder.join(shard).exists())
        }
        Kind::Model if !any(&[SINGLE]) => Some(SINGLE.into()),
        Kind::Model => None,
    })
}

/// Whether a folder that lacks nothing also has all that is usual beside it.
pub(super) fn has_tokenizer(folder: &Path, kind: Kind) -> bool {
    kind == Kind::Adapter || folder.join(BESIDE[0]).exists()
}
