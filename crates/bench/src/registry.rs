//! THE registry of methods: one line each, from which configuration parsing, help, the method
//! table and the contract matrix derive.

mod foreign;

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::ParamId;
use peft_core::{
    Assembler, BaseParam, CoreError, Fields, Geometry, Method, MethodConfig, MethodInfo, Part, Role,
};
use serde_json::Value;

use crate::error::{BenchError, with_suggestion};
use crate::{parts, plain};

pub(crate) use foreign::part;

/// Lists the methods once; `with_methods!(f)` calls the macro `f!` with all of them.
macro_rules! with_methods {
    ($use:ident) => {
        $use! {
            peft_adapter::Full,
            peft_adapter::HeadOnly,
            peft_adapter::Houlsby,
            peft_adapter::Pfeiffer,
            peft_adapter::Parallel,
            peft_adapter::Mam,
            peft_adapter::UniPelt,
            peft_adapter::AdapterPlus,
            peft_adapter::Compacter,
            peft_adapter::CompacterPlus,
            peft_adapter::Hyper,
            peft_adapter::HyperInstance,
            peft_adapter::Mixture,
            peft_adapter::SparseAdapter,
            peft_adapter::L0Adapter,
            peft_adapter::Prefix,
            peft_adapter::AdaptionPrompt,
            peft_adapter::PromptTuning,
            peft_adapter::PTuning,
            peft_adapter::LoReft,
            peft_adapter::BitFit,
            peft_adapter::LnTuning,
            peft_adapter::TopLayers,
            peft_adapter::Fusion,
            peft_adapter::Stack,
            peft_adapter::Average,
            peft_adapter::Split,
            peft_adapter::BatchSplit,
            peft_adapter::ParallelBlock,
            peft_lora::Lora,
            peft_lora::LoraFa,
            peft_lora::LoraPlus,
            peft_lora::Pissa,
            peft_lora::Olora,
            peft_lora::Eva,
            peft_lora::Dora,
            peft_lora::AdaLora,
            peft_lora::ReLora,
            peft_lora::Vera,
            peft_lora::Ia3,
            peft_lora::Hira,
            peft_lora::Loha,
            peft_lora::Lokr,
            peft_lora::Miss,
            peft_lora::Oft,
            peft_lora::Boft,
            peft_lora::FourierFt,
            peft_lora::Hra,
            peft_lora::Delora,
            peft_lora::Gralora,
            peft_lora::RandLora,
            peft_lora::VbLora,
            peft_lora::C3a,
            peft_lora::Road,
            peft_lora::MoLora,
            peft_qlora::Qlora,
            peft_qlora::LoftQ,
        }
    };
}

/// The methods of this workspace and these besides; a kind already there is replaced.
///
/// `bench::cli::run(&bench::registry![MyMethod])` is a whole program; the guide is
/// `experiments/own-method`.
#[macro_export]
macro_rules! registry {
    ($($method:ty),* $(,)?) => { $crate::registry::Registry::builtin()$(.with::<$method>())* };
}

/// What the harness knows of one method.
#[derive(Clone)]
pub struct Entry {
    /// The method's description.
    pub info: MethodInfo,
    revision: u32,
    parse: fn(Value, &dyn Assembler) -> Result<Parsed, String>,
    example: fn() -> Value,
    storages: fn(&dyn Assembler) -> String,
    in_full: fn(Value) -> Option<Value>,
    from_peft: Reader,
    from_adapter_hub: Reader,
}

/// A configuration in full, and the method of it.
type Parsed = (Value, Arc<dyn Method>);

/// A method's reader of a foreign configuration: none where it describes another method.
type Reader = fn(&mut Fields, &Geometry, &dyn Assembler) -> Result<Option<Read>, CoreError>;

/// A kind, its configuration, and the method of it.
type Read = (String, Value, Arc<dyn Method>);

/// A configuration that was read, as the registry hands it on.
fn read<M: MethodConfig>(
    config: Option<M>,
    assembler: &dyn Assembler,
) -> Result<Option<Read>, CoreError> {
    let Some(config) = config else {
        return Ok(None);
    };
    let config = config.assemble(assembler)?;
    Ok(Some((M::INFO.kind.into(), json(&config), Arc::new(config))))
}

fn json<M: MethodConfig>(config: &M) -> Value {
    serde_json::to_value(config).expect("configurations serialise")
}

/// The method of a configuration, and the configuration with its parts, if it has any, in full.
fn parse<M: MethodConfig>(value: Value, assembler: &dyn Assembler) -> Result<Parsed, String> {
    let refused = |value| {
        serde_json::from_value::<M>(value)
            .err()
            .map(|e| e.to_string())
    };
    let config = serde_json::from_value::<M>(value.clone());
    let config = config.map_err(|error| plain::said(&error.to_string(), &value, &refused))?;
    let config = config.assemble(assembler).map_err(|e| e.to_string())?;
    let value = match config.parts() {
        [] => value,
        _ => json(&config),
    };
    Ok((value, Arc::new(config)))
}

/// The first example of a method.
fn first_example<M: MethodConfig>() -> M {
    let mut examples = M::examples().into_iter();
    examples.next().expect("at least one example")
}

/// The storages of the frozen weights that a method runs over, as it behaves.
fn storages<M: MethodConfig>(assembler: &dyn Assembler) -> String {
    let method = first_example::<M>().assemble(assembler);
    let method = method.expect("an example is made of known kinds");
    if let Some(preset) = method.storage() {
        return format!("its own: {}", preset.name());
    }
    let trains_a_matrix = method.trains(&BaseParam {
        id: ParamId::new(),
        name: "h.0.query.weight".into(),
        shape: vec![2, 2],
        part: Part::Linear,
        layer: Some(0),
        layers_above: Some(0),
        transposed: false,
        role: Some(Role::Query),
    });
    match trains_a_matrix {
        true => "f32".into(),
        false => "any".into(),
    }
}

impl Entry {
    /// The entry of a method's configuration type.
    pub fn of<M: MethodConfig>() -> Self {
        Self {
            info: M::INFO,
            revision: M::REVISION,
            parse: parse::<M>,
            in_full: |config| {
                serde_json::from_value(config)
                    .ok()
                    .map(|config: M| json(&config))
            },
            from_peft: |fields, geometry, parts| read(M::from_peft(fields, geometry)?, parts),
            from_adapter_hub: |fields, geometry, parts| {
                read(M::from_adapter_hub(fields, geometry)?, parts)
            },
            example: || json(&first_example::<M>()),
            storages: storages::<M>,
        }
    }

    /// An example configuration, every key with a value.
    pub fn example(&self) -> Value {
        (self.example)()
    }

    /// The storages of the frozen weights it runs over: `any`, `f32`, or the one it brings.
    pub fn storages(&self, registry: &Registry) -> String {
        (self.storages)(registry)
    }
}

/// The methods a study may name.
#[derive(Clone)]
pub struct Registry(Vec<Entry>);

impl Registry {
    /// The methods of this workspace.
    pub fn builtin() -> Self {
        macro_rules! entries {
            ($($method:ty),* $(,)?) => { vec![$(Entry::of::<$method>()),*] };
        }
        Self(with_methods!(entries))
    }

    /// The registry with one more method; a `kind` already there is replaced.
    #[must_use]
    pub fn with<M: MethodConfig>(mut self) -> Self {
        self.0.retain(|entry| entry.info.kind != M::INFO.kind);
        self.0.push(Entry::of::<M>());
        self
    }

    /// Every entry, in the order of registration.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The entry of a kind.
    ///
    /// # Errors
    /// If there is none; the error lists the known kinds.
    pub fn entry(&self, kind: &str) -> Result<&Entry, BenchError> {
        self.0
            .iter()
            .find(|entry| entry.info.kind == kind)
            .ok_or_else(|| {
                let known: Vec<_> = self
                    .0
                    .iter()
                    .map(|e| format!("`{}`", e.info.kind))
                    .collect();
                let message = format!(
                    "unknown variant `{kind}`, expected one of {}",
                    known.join(", ")
                );
                BenchError::Method {
                    place: format!("`{kind}`"),
                    reason: with_suggestion(&message),
                }
            })
    }

    /// The method of a kind with this configuration.
    ///
    /// # Errors
    /// If the kind is unknown, or a key or value of the configuration is.
    pub fn parse(&self, kind: &str, config: &Value) -> Result<Arc<dyn Method>, BenchError> {
        self.resolve(kind, config).map(|(_, method)| method)
    }

    /// The same with the configuration in full: of a part that is the folder of an adapter, it says
    /// what the folder holds.
    ///
    /// # Errors
    /// As [`Registry::parse`].
    pub fn resolve(
        &self,
        kind: &str,
        config: &Value,
    ) -> Result<(Value, Arc<dyn Method>), BenchError> {
        let entry = self.entry(kind)?;
        (entry.parse)(config.clone(), self).map_err(|reason| BenchError::Method {
            place: format!("`{kind}`"),
            reason,
        })
    }

    /// A configuration of a kind with every key that it leaves to its default.
    ///
    /// # Errors
    /// As [`Registry::parse`].
    pub fn in_full(&self, kind: &str, config: &Value) -> Result<Value, BenchError> {
        let (config, _) = self.resolve(kind, config)?;
        let full = (self.entry(kind)?.in_full)(config.clone());
        Ok(full.unwrap_or(config))
    }

    /// The revisions of a kind and of the parts in its configuration, where there was any; see
    /// [`MethodConfig::REVISION`].
    pub fn revisions(&self, kind: &str, config: &Value) -> BTreeMap<String, u32> {
        let mut kinds = vec![kind.to_string()];
        parts::each_kind(config, &mut |kind| kinds.push(kind.into()));
        let known = kinds.into_iter().filter_map(|kind| {
            let revision = self.entry(&kind).ok()?.revision;
            (revision > 0).then_some((kind, revision))
        });
        known.collect()
    }

    /// The method table of the README, in Markdown.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| kind | method | paper | seam | trained parameters | merges | storage |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for entry in &self.0 {
            let (info, storages) = (&entry.info, entry.storages(self));
            let merges = if info.mergeable { "yes" } else { "no" };
            table += &format!(
                "| `{}` | {} | {} | {} | {} | {merges} | {storages} |\n",
                info.kind, info.name, info.paper, info.seam, info.formula
            );
        }
        table
    }
}

#[cfg(test)]
mod tests;
