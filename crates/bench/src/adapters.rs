//! Several adapters on one base model, which is in memory once.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use burn::module::Module;
use burn::tensor::Device;
use models::{Loaded, Model};
use peft_core::{Adapted, Host, Init, blend};
use serde_json::Value;

use crate::adapter::{self, Base, Card, Opened};
use crate::heads::Heads;
use crate::hub::{Kind, RepoId};
use crate::layer_drop::without_lowest;
use crate::parts;
use crate::registry::Registry;
use crate::source;
use crate::storage::StorageSpec;

/// The name of the model without an adapter.
pub const BASE: &str = "base";

/// One `--adapter` of a command line: `NAME=DIR`, or `DIR`, whose last part is the name then; with
/// `=WEIGHT` behind it, one part of a weighted combination.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterArg {
    /// What it is called.
    pub name: String,
    /// Its folder, or its name on the hub.
    pub folder: PathBuf,
    /// Its weight in a combination.
    pub weight: Option<f64>,
    /// How many of the lowest layers go without it, in place of what it says itself.
    pub drop_layers: Option<usize>,
}

impl FromStr for AdapterArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (text, weight) = match weight(text) {
            Some((rest, weight)) => (rest, Some(weight)),
            None => (text, None),
        };
        let pair = text.split_once('=').filter(|(name, _)| !name.contains('/'));
        let (name, folder) = match pair {
            Some((name, folder)) => (name.to_string(), PathBuf::from(folder)),
            None => (last_part(Path::new(text))?, PathBuf::from(text)),
        };
        ensure!(!folder.as_os_str().is_empty(), "`{text}` names no folder");
        ensure!(
            !name.is_empty() && !name.contains(char::is_whitespace),
            "`{name}` in `{text}` is no name for an adapter; expected NAME=DIR, the name without \
             spaces"
        );
        ensure!(
            name != BASE,
            "`{BASE}` is the model without an adapter; choose another name"
        );
        Ok(Self {
            name,
            folder,
            weight,
            drop_layers: None,
        })
    }
}

/// Splits off a weight: a number behind the last `=`, unless a folder is called so.
fn weight(text: &str) -> Option<(&str, f64)> {
    let (rest, number) = text.rsplit_once('=')?;
    let weight = number.parse().ok()?;
    let folder = text.split_once('=').map_or(text, |(_, folder)| folder);
    (!Path::new(text).exists() && !Path::new(folder).exists()).then_some((rest, weight))
}

fn last_part(folder: &Path) -> Result<String> {
    if let Some(id) = RepoId::of(folder)? {
        return Ok(id.short_name().into());
    }
    let name = folder.file_name().and_then(|name| name.to_str());
    let name =
        name.with_context(|| format!("`{}` has no name; give NAME=DIR", folder.display()))?;
    Ok(name.into())
}

/// The model with one adapter.
struct Set {
    name: String,
    card: Card,
    model: Adapted<Model>,
}

/// A base model and what it becomes with each of several adapters. All share the base's tensors,
/// so that an adapter costs the memory of its own ones, and using another costs nothing. An
/// adapter that says how its base is stored brings a packed copy of it, unless the base is packed so.
pub struct Adapters {
    base: Base,
    config: Value,
    bare: Adapted<Model>,
    sets: Vec<Set>,
    classes: Option<usize>,
    new_layers: Vec<String>,
    training: Device,
}

impl Adapters {
    /// Loads a base model and adapters for it, ready to compute without gradients. `storage` is how
    /// the base is to be stored.
    ///
    /// # Errors
    /// If the model or an adapter cannot be loaded, the model is packed another way already, two
    /// adapters have one name, or they are for different numbers of classes.
    pub fn load(
        model: &Path,
        storage: &StorageSpec,
        adapters: &[AdapterArg],
        registry: &Registry,
        device: &Device,
    ) -> Result<Self> {
        // Which parameters an adapter trains is known on a device that tracks gradients.
        let training = device.clone().autodiff();
        let first = match adapters.first() {
            Some(arg) => Some(adapter::open(&source::folder(&arg.folder, Kind::Adapter)?)?),
            None => None,
        };
        let classes = first.as_ref().and_then(Opened::classes);
        let seed = first.as_ref().map_or(0, Opened::seed);
        let Loaded {
            model,
            config,
            new_layers,
        } = source::load(model, classes, &mut Init::new(seed, &training))?;
        let base = Base::stored(model, storage)?;
        let mut loaded = Self {
            bare: Adapted::plain(base.model().valid()),
            base,
            config,
            sets: Vec::new(),
            classes,
            new_layers,
            training,
        };
        for arg in adapters {
            loaded.add(arg, registry)?;
        }
        loaded.base.forget_read();
        match adapters.iter().any(|arg| arg.weight.is_some()) {
            true => loaded.blended(adapters),
            false => Ok(loaded),
        }
    }

    /// The adapters as one, each with its weight.
    fn blended(self, adapters: &[AdapterArg]) -> Result<Self> {
        let mut parts = Vec::new();
        for (arg, set) in adapters.iter().zip(&self.sets) {
            let weight = arg.weight.with_context(|| {
                let name = &set.name;
                format!(
                    "`{name}` has no weight; give `--adapter {name}=WEIGHT` for all or for none"
                )
            })?;
            parts.push((weight, set.model.clone()));
        }
        let model = blend(self.base.model().valid(), parts)?;
        Ok(self.joined(model))
    }

    /// The adapters as one method that is made of them: `composition` is its kind (`stack`) or its
    /// keys as inline TOML, the parts left out.
    ///
    /// # Errors
    /// If it is no such method, has parameters of its own, or the adapters do not go together.
    pub fn composed(self, composition: &str, registry: &Registry) -> Result<Self> {
        let parts = self.sets.iter().map(|set| (&set.card, &set.model));
        let parts: Vec<_> = parts.collect();
        let place = || {
            let names: Vec<_> = self.names().collect();
            let names = names.join("`, `");
            format!("cannot compose `{names}` by `{composition}`")
        };
        let model = parts::composed(composition, &parts, &self.base, registry);
        let model = model.with_context(place)?;
        Ok(self.joined(model))
    }

    /// One model in place of all adapters, called after them.
    fn joined(mut self, model: Adapted<Model>) -> Self {
        let names: Vec<&str> = self.names().collect();
        let name = names.join("+");
        self.sets.truncate(1);
        for set in &mut self.sets {
            (set.name, set.model) = (name.clone(), model.clone());
        }
        self
    }

    /// Loads another adapter beside those there are.
    ///
    /// # Errors
    /// As [`Adapters::load`].
    pub fn add(&mut self, arg: &AdapterArg, registry: &Registry) -> Result<()> {
        let AdapterArg {
            name,
            folder,
            drop_layers,
            ..
        } = arg;
        ensure!(
            self.names().all(|known| known != name),
            "two adapters are called `{name}`; give NAME=DIR"
        );
        let at = || format!("cannot load the adapter `{name}`");
        let folder = source::folder(folder, Kind::Adapter).with_context(at)?;
        let opened = adapter::open(&folder).with_context(at)?;
        let classes = opened.classes();
        ensure!(
            classes == self.classes,
            "the adapter `{name}` is for {} classes, the model was loaded for {}",
            classes.unwrap_or(0),
            self.classes.unwrap_or(0)
        );
        // Clones share their tensors; only what the adapter adds is new.
        let init = &mut Init::new(opened.seed(), &self.training);
        let mut fitted = opened.fit(&self.base, registry, init).with_context(at)?;
        let layers = fitted.model.host.geometry().layers;
        let dropped = drop_layers.unwrap_or(fitted.card.dropped_layers);
        ensure!(
            dropped <= layers,
            "`--drop-layers` is {dropped}, expected at most {layers}, the model's layers"
        );
        fitted.card.dropped_layers = dropped;
        self.sets.push(Set {
            name: name.clone(),
            card: fitted.card,
            model: without_lowest(&fitted.model, dropped).valid().steady(),
        });
        Ok(())
    }

    /// Refuses the number of a task for which the adapter of this name is not made.
    ///
    /// # Errors
    /// If there are fewer tasks.
    pub fn check_task(&self, name: &str, task: usize, registry: &Registry) -> Result<()> {
        let Some(set) = self.sets.iter().find(|set| set.name == name) else {
            return Ok(());
        };
        let tasks = registry.parse(&set.card.kind, &set.card.config)?.tasks();
        ensure!(
            tasks.is_none_or(|tasks| task < tasks),
            "`--task` is {task}, and the adapter `{name}` is made for {} tasks, counted from 0",
            tasks.unwrap_or(0)
        );
        Ok(())
    }

    /// The model with the adapter of this name, or bare under the name of [`BASE`].
    ///
    /// # Errors
    /// If there is none of the name.
    pub fn get(&self, name: &str) -> Result<&Adapted<Model>> {
        let own = self.sets.iter().find(|set| set.name == name);
        match own {
            Some(set) => Ok(&set.model),
            None if name == BASE => Ok(&self.bare),
            None => bail!("no adapter is called `{name}`; there are {}", self.list()),
        }
    }

    /// The name to use: the wanted one, or else the only adapter, or the base where there is none.
    ///
    /// # Errors
    /// If the wanted one does not exist, or none is named and there are several.
    pub fn choose<'a>(&'a self, wanted: Option<&'a str>) -> Result<&'a str> {
        match (wanted, &self.sets[..]) {
            (Some(name), _) => self.get(name).map(|_| name),
            (None, []) => Ok(BASE),
            (None, [only]) => Ok(&only.name),
            (None, _) => bail!("several adapters are loaded; choose one of {}", self.list()),
        }
    }

    /// The names of all adapters, in the order they were loaded.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sets.iter().map(|set| set.name.as_str())
    }

    /// All names that [`Adapters::get`] takes, for people.
    pub fn list(&self) -> String {
        let names: Vec<_> = [BASE].into_iter().chain(self.names()).collect();
        format!("`{}`", names.join("`, `"))
    }

    /// The layers that neither the checkpoint nor an adapter has: they hold random values.
    pub fn untrained(&self) -> &[String] {
        match self.classes {
            Some(_) => &[],
            None => &self.new_layers,
        }
    }

    /// The classes of the adapter loaded last, as it names them.
    pub fn heads(&self) -> Heads {
        let last = self.sets.last();
        last.map(|set| set.card.heads.clone()).unwrap_or_default()
    }

    /// The base model's configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The model with the one adapter there is, or bare; everything else is dropped.
    ///
    /// # Errors
    /// If there are several.
    pub fn into_only(mut self) -> Result<Adapted<Model>> {
        ensure!(
            self.sets.len() < 2,
            "{} adapters are given; say what they are together, by `--compose` or by weights, \
             `--adapter DIR=WEIGHT`",
            self.sets.len()
        );
        Ok(self.sets.pop().map_or(self.bare, |set| set.model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arg(text: &str) -> (String, PathBuf) {
        let AdapterArg { name, folder, .. } = text.parse().unwrap();
        (name, folder)
    }

    #[test]
    fn a_number_behind_the_folder_is_a_weight() {
        let weight = |text: &str| text.parse::<AdapterArg>().unwrap().weight;
        assert_eq!(weight("out/cook=0.7"), Some(0.7));
        assert_eq!(weight("a=out/cook=-1"), Some(-1.0));
        assert_eq!(weight("a=out/cook"), None);
        assert_eq!(arg("a=out/cook=0.3"), ("a".into(), "out/cook".into()));
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("rate=0.1");
        std::fs::create_dir(&named).unwrap();
        assert_eq!(weight(named.to_str().unwrap()), None);
    }

    #[test]
    fn an_adapter_without_a_name_is_called_as_its_folder() {
        assert_eq!(arg("out/cook"), ("cook".into(), "out/cook".into()));
        assert_eq!(arg("out/lr=3/"), ("lr=3".into(), "out/lr=3/".into()));
        assert_eq!(arg("a=out/lr=3/"), ("a".into(), "out/lr=3/".into()));
        let hub = "hf://org/cook@main";
        assert_eq!(arg(hub), ("cook".into(), hub.into()));
        assert_eq!(arg(&format!("b={hub}")), ("b".into(), hub.into()));
    }

    #[test]
    fn names_that_could_not_be_used_are_refused() {
        for text in [
            "=out/a",
            "a b=out/a",
            "a=",
            "base=out/a",
            "out/base",
            ".",
            "hf://../x",
        ] {
            assert!(text.parse::<AdapterArg>().is_err(), "{text}");
        }
    }
}
