//! THE registry of methods: one line each, from which configuration parsing, help, the method
//! table and the contract matrix derive.

use std::sync::Arc;

use anyhow::{Context, Result};
use peft_core::{Assembler, CoreError, Fields, Geometry, Method, MethodConfig, MethodInfo};
use serde_json::Value;

use crate::error::{BenchError, with_suggestion};

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
            peft_adapter::Compacter,
            peft_adapter::CompacterPlus,
            peft_adapter::Prefix,
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
            peft_lora::Lora,
            peft_lora::LoraFa,
            peft_lora::Dora,
            peft_lora::AdaLora,
            peft_lora::Vera,
            peft_lora::Ia3,
            peft_lora::Hira,
            peft_lora::Loha,
            peft_lora::Lokr,
            peft_lora::Miss,
            peft_lora::Oft,
            peft_lora::Boft,
            peft_lora::FourierFt,
            peft_qlora::Qlora,
        }
    };
}

/// What the harness knows of one method.
#[derive(Clone)]
pub struct Entry {
    /// The method's description.
    pub info: MethodInfo,
    parse: fn(Value, &dyn Assembler) -> Result<Parsed, String>,
    example: fn() -> Value,
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
    let config = serde_json::from_value::<M>(value.clone());
    let config = config.map_err(|error| with_suggestion(&error.to_string()))?;
    let config = config.assemble(assembler).map_err(|e| e.to_string())?;
    let value = match config.parts() {
        [] => value,
        _ => json(&config),
    };
    Ok((value, Arc::new(config)))
}

impl Entry {
    /// The entry of a method's configuration type.
    pub fn of<M: MethodConfig>() -> Self {
        Self {
            info: M::INFO,
            parse: parse::<M>,
            from_peft: |fields, geometry, parts| read(M::from_peft(fields, geometry)?, parts),
            from_adapter_hub: |fields, geometry, parts| {
                read(M::from_adapter_hub(fields, geometry)?, parts)
            },
            example: || {
                let example = M::examples()
                    .into_iter()
                    .next()
                    .expect("at least one example");
                json(&example)
            },
        }
    }

    /// An example configuration, every key with a value.
    pub fn example(&self) -> Value {
        (self.example)()
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

    /// The method that an HF PEFT configuration describes.
    ///
    /// # Errors
    /// If no method here is of its `peft_type`, or a field that changes what is computed is not
    /// supported; the error names it.
    pub fn from_peft(
        &self,
        fields: Fields,
        geometry: &Geometry,
        harmless: &[&str],
    ) -> Result<Read> {
        let found = fields.peek("peft_type").to_string();
        let read = self.first(|entry| entry.from_peft, fields, geometry, harmless)?;
        read.with_context(|| format!("`peft_type` is {found}, which no method here reads"))
    }

    /// The method that an AdapterHub `config` describes.
    ///
    /// # Errors
    /// If no method here fits it, or a field that changes what is computed is not supported.
    pub fn from_adapter_hub(
        &self,
        fields: Fields,
        geometry: &Geometry,
        harmless: &[&str],
    ) -> Result<Read> {
        let shown = |key| format!("`{key}` {}", fields.peek(key));
        let found = [
            "architecture",
            "mh_adapter",
            "output_adapter",
            "is_parallel",
            "phm_layer",
        ];
        let found = found.map(shown).join(", ");
        let read = self.first(|entry| entry.from_adapter_hub, fields, geometry, harmless)?;
        read.with_context(|| format!("no method here is an adapter with {found}"))
    }

    /// What the first method that knows the configuration reads in it.
    fn first(
        &self,
        reader: fn(&Entry) -> Reader,
        fields: Fields,
        geometry: &Geometry,
        harmless: &[&str],
    ) -> Result<Option<Read>> {
        for entry in &self.0 {
            let mut fields = fields.clone();
            if let Some(read) = reader(entry)(&mut fields, geometry, self)? {
                fields.ignore(harmless);
                fields.finish()?;
                return Ok(Some(read));
            }
        }
        Ok(None)
    }

    /// The method table of the README, in Markdown.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| kind | method | paper | seam | trained parameters | merges |\n|---|---|---|---|---|---|\n",
        );
        for Entry { info, .. } in &self.0 {
            let merges = if info.mergeable { "yes" } else { "no" };
            table += &format!(
                "| `{}` | {} | {} | {} | {} | {merges} |\n",
                info.kind, info.name, info.paper, info.seam, info.formula
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int, Tensor};
    use models::{BertConfig, Family, Gpt2Config, LlamaConfig, Model};
    use peft_core::contract::{self, ContractHost, Setting};
    use peft_core::{Adapted, Host, Init, Surgeon};

    #[test]
    fn an_unknown_kind_lists_the_known_ones_and_suggests_the_nearest() {
        let error = Registry::builtin()
            .parse("lroa", &Value::Null)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`houlsby`") && error.contains("did you mean `lora`"),
            "{error}"
        );
    }

    #[test]
    fn every_kind_is_registered_once() {
        let mut kinds: Vec<_> = Registry::builtin().0.iter().map(|e| e.info.kind).collect();
        let all = kinds.len();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), all);
    }

    /// The contract's view of a real architecture.
    macro_rules! host {
        ($name:ident, $build:expr) => {
            #[derive(burn::module::Module, Debug)]
            struct $name {
                model: Model,
            }
            impl Host for $name {
                fn geometry(&self) -> Geometry {
                    self.model.geometry()
                }
                fn rebuild(self, surgeon: &mut dyn Surgeon) -> Self {
                    Self {
                        model: self.model.rebuild(surgeon),
                    }
                }
                fn untie_head(self) -> Self {
                    Self {
                        model: self.model.untie_head(),
                    }
                }
            }
            impl ContractHost for $name {
                const VOCAB: usize = 31;
                fn build(init: &mut Init) -> Self {
                    let build: fn(&mut Init) -> Model = $build;
                    Self { model: build(init) }
                }
                fn logits(adapted: &Adapted<Self>, ids: Tensor<2, Int>) -> Tensor<3> {
                    let device = ids.device();
                    let [rows, seq] = ids.dims();
                    let ids: Vec<i64> = ids.into_data().convert::<i64>().try_to_vec().unwrap();
                    let ids = ids.into_iter().map(|id| id as u32).collect();
                    let positions = adapted.host.model.positions();
                    // The last tokens of every row are padding, so that masks take part.
                    let mask = (0..rows * seq).map(|i| f32::from(u8::from(i % seq < seq - 1)));
                    let mask = mask.collect();
                    let batch = models::Batch::from_parts(ids, mask, rows, positions, &device);
                    let model = Adapted {
                        host: adapted.host.model.clone(),
                        shared: adapted.shared.clone(),
                        position_offset: adapted.position_offset,
                    };
                    models::logits(&model, &batch)
                }
            }
        };
    }

    host!(GptHost, |init| {
        Model::random_gpt2(Gpt2Config::new(31, 16, 12, 2, 2), init).unwrap()
    });
    host!(BertHost, |init| {
        let config = serde_json::json!({
            "vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 16,
            "type_vocab_size": 2, "num_labels": 3
        });
        let config = BertConfig::from_json(Family::Bert, &config, "test".as_ref()).unwrap();
        Model::random_bert(config, init).unwrap()
    });

    /// A small model of the Llama family with these settings besides. Grouped queries, wider than
    /// the model; a tied head.
    fn llama(own: serde_json::Value, init: &mut Init) -> Model {
        let mut config = serde_json::json!({
            "vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 20,
            "max_position_embeddings": 16, "tie_word_embeddings": true, "initializer_range": 0.1
        });
        let own = own.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(own);
        let config = LlamaConfig::from_json(&config, "test".as_ref()).unwrap();
        Model::random_llama(config, init).unwrap()
    }

    host!(LlamaHost, |init| {
        // With biases, which BitFit trains.
        let biases = serde_json::json!(
            {"model_type": "llama", "attention_bias": true, "mlp_bias": true}
        );
        llama(biases, init)
    });

    // A window shorter than the text, out of which a prefix falls, so that weights must be large
    // enough for the rest of it to show.
    host!(MistralHost, |init| {
        let window = serde_json::json!({"model_type": "mistral", "sliding_window": 4});
        llama(window, init)
    });

    fn contract_on<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
        contract::identity_at_init::<M, H>(setting);
        contract::merge_preserves_the_output::<M, H>(setting);
        contract::saved_alone_and_restored::<M, H>(setting);
        contract::targets_that_match_nothing_are_an_error::<M, H>(setting);
    }

    macro_rules! gpt2_contract {
        ($($method:ty),* $(,)?) => {
            $(
                let setting = Setting::dense(Device::flex());
                contract_on::<$method, GptHost>(&setting);
                contract::count_equals_closed_form::<$method, GptHost>(&setting);
                contract::only_declared_parameters_train::<$method, GptHost>(&setting);
                contract::loss_falls::<$method, GptHost>(&setting);
            )*
        };
    }

    #[test]
    fn every_method_keeps_the_contract_on_gpt2() {
        with_methods!(gpt2_contract);
    }

    macro_rules! bert_contract {
        ($($method:ty),* $(,)?) => {
            $(contract_on::<$method, BertHost>(&Setting::dense(Device::flex()));)*
        };
    }

    #[test]
    fn every_method_keeps_the_contract_on_bert() {
        with_methods!(bert_contract);
    }

    macro_rules! llama_contract {
        ($($method:ty),* $(,)?) => {
            $(
                let setting = Setting::dense(Device::flex());
                contract_on::<$method, LlamaHost>(&setting);
                contract::count_equals_closed_form::<$method, LlamaHost>(&setting);
                contract::only_declared_parameters_train::<$method, LlamaHost>(&setting);
                contract::loss_falls::<$method, LlamaHost>(&setting);
            )*
        };
    }

    #[test]
    fn every_method_keeps_the_contract_on_llama() {
        with_methods!(llama_contract);
    }

    macro_rules! mistral_contract {
        ($($method:ty),* $(,)?) => {
            $(
                let setting = Setting::dense(Device::flex());
                contract_on::<$method, MistralHost>(&setting);
                contract::loss_falls::<$method, MistralHost>(&setting);
            )*
        };
    }

    #[test]
    fn methods_that_change_what_queries_see_keep_the_contract_under_a_sliding_window() {
        use peft_adapter::{LoReft, Mam, PTuning, Prefix, PromptTuning};
        mistral_contract!(Prefix, Mam, PromptTuning, PTuning, LoReft, peft_lora::Lora);
    }

    #[test]
    fn adapters_keep_the_contract_over_packed_weights() {
        macro_rules! over {
            ($storage:expr; $($method:ty),* $(,)?) => {
                let storage = $storage;
                let setting = Setting {
                    device: Device::flex(),
                    storage: Some(&storage),
                };
                $(
                    contract_on::<$method, GptHost>(&setting);
                    contract::loss_falls::<$method, GptHost>(&setting);
                    contract::count_equals_closed_form::<$method, GptHost>(&setting);
                )*
            };
        }
        use peft_adapter::{
            Average, BatchSplit, BitFit, Compacter, CompacterPlus, Fusion, Houlsby, LnTuning,
            LoReft, Mam, PTuning, Parallel, Pfeiffer, Prefix, PromptTuning, Split, Stack,
        };
        use peft_lora::{
            AdaLora, Boft, Dora, FourierFt, Hira, Ia3, Loha, Lokr, Lora, LoraFa, Miss, Oft, Vera,
        };
        over!(peft_qlora::Nf4::default();
            Houlsby, Pfeiffer, Parallel, Compacter, CompacterPlus, Prefix, PromptTuning, PTuning,
            LoReft, BitFit, LnTuning, Mam, Fusion, Stack, Average, Split, BatchSplit, Lora, LoraFa, Dora, AdaLora, Vera, Ia3, Hira, Loha, Lokr,
            Miss, Oft, Boft, FourierFt);
        over!(peft_qlora::Fp4::new(32, false); Houlsby, Prefix, PTuning, Lora);
        over!(peft_qlora::Int8 {}; Houlsby, Prefix, LoReft, Lora, Vera);
    }
}
