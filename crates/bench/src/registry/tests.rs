//! The contract of every method on real architectures, and what the registry itself promises.

use super::*;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use models::{BertConfig, Family, Gpt2Config, LlamaConfig, Model};
use peft_core::contract::{self, ContractHost, Setting};
use peft_core::toy::Toy;
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
                    copies: adapted.copies,
                };
                models::logits(&model, &batch)
            }
        }
    };
}

host!(GptHost, |init| {
    // Weights large enough for what a method adds to the attention alone to show.
    let config = Gpt2Config {
        initializer_range: 0.1,
        ..Gpt2Config::new(31, 16, 12, 2, 2)
    };
    Model::random_gpt2(config, init).unwrap()
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

/// Dense weights, and a registry for methods that name others.
fn dense(registry: &Registry) -> Setting<'_> {
    Setting {
        assembler: Some(registry),
        ..Setting::dense(Device::flex())
    }
}

fn contract_on<M: MethodConfig, H: ContractHost>(setting: &Setting<'_>) {
    contract::identity_at_init::<M, H>(setting);
    contract::merge_preserves_the_output::<M, H>(setting);
    contract::steady_it_computes_the_same::<M, H>(setting);
    contract::saved_alone_and_restored::<M, H>(setting);
    contract::targets_that_match_nothing_are_an_error::<M, H>(setting);
}

macro_rules! gpt2_contract {
    ($($method:ty),* $(,)?) => {
        $(
            let registry = Registry::builtin();
            let setting = dense(&registry);
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

fn generates_what_training_learns<M: MethodConfig>() {
    for method in M::examples() {
        let method = method.assemble(&Registry::builtin()).unwrap();
        let mut init = Init::new(3, &Device::flex().autodiff());
        let config = Gpt2Config::new(31, 40, 12, 2, 2);
        let base = Model::random_gpt2(config, &mut init).unwrap();
        let model = peft_core::adapt(base, &method, None, &mut init).unwrap();
        let model = contract::perturbed(model, 0.5).valid();
        let prompts: [&[u32]; 2] = [&[1, 5, 2], &[7, 9, 11, 30, 4]];
        let generation = models::Generation {
            task: 0,
            max_new_tokens: 6,
            eos: Vec::new(),
            choice: models::Choice::Greedy,
        };
        let texts = models::generate(&model, &prompts, &generation, &Device::flex());
        for (prompt, text) in prompts.into_iter().zip(texts) {
            let ids: Vec<u32> = prompt.iter().chain(&text).copied().collect();
            let (rows, mask) = (ids.len(), vec![1.0; ids.len()]);
            let positions = model.host.positions();
            let batch = models::Batch::from_parts(ids, mask, 1, positions, &Device::flex());
            let batch = batch.with_prompts(&[prompt.len()]);
            let logits = models::logits(&model, &batch);
            // Virtual tokens stand in front.
            let first = logits.dims()[1] - rows + prompt.len() - 1;
            let logits = logits.narrow(1, first, text.len());
            let whole = logits.argmax(2).into_data().convert::<i64>();
            let whole: Vec<i64> = whole.try_to_vec().unwrap();
            let text: Vec<i64> = text.into_iter().map(i64::from).collect();
            assert_eq!(text, whole, "{method:?}");
        }
    }
}

#[test]
fn texts_generated_token_by_token_are_those_of_whole_passes() {
    macro_rules! over {
        ($($method:ty),* $(,)?) => { $(generates_what_training_learns::<$method>();)* };
    }
    with_methods!(over);
}

macro_rules! bert_contract {
    ($($method:ty),* $(,)?) => {
        $(contract_on::<$method, BertHost>(&dense(&Registry::builtin()));)*
    };
}

#[test]
fn every_method_keeps_the_contract_on_bert() {
    with_methods!(bert_contract);
}

macro_rules! llama_contract {
    ($($method:ty),* $(,)?) => {
        $(
            let registry = Registry::builtin();
            let setting = dense(&registry);
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

#[test]
fn a_method_that_names_another_leaves_nothing_in_the_layers_it_is_taken_out_of() {
    let registry = Registry::builtin();
    // Without positions, which a prefix may move.
    let setting = dense(&registry);
    contract::left_out_of_a_layer_it_leaves_nothing::<peft_adapter::UniPelt, Toy>(&setting);
}

macro_rules! mistral_contract {
    ($($method:ty),* $(,)?) => {
        $(
            let registry = Registry::builtin();
            let setting = dense(&registry);
            contract_on::<$method, MistralHost>(&setting);
            contract::loss_falls::<$method, MistralHost>(&setting);
        )*
    };
}

#[test]
fn methods_that_change_what_queries_see_keep_the_contract_under_a_sliding_window() {
    use peft_adapter::{AdaptionPrompt, LoReft, Mam, PTuning, Prefix, PromptTuning, UniPelt};
    mistral_contract!(
        AdaptionPrompt,
        Prefix,
        Mam,
        UniPelt,
        PromptTuning,
        PTuning,
        LoReft,
        peft_lora::Lora
    );
}

#[test]
fn the_table_says_over_which_storage_a_method_runs() {
    let registry = Registry::builtin();
    let storages = |kind| registry.entry(kind).unwrap().storages(&registry);
    for (kind, expected) in [
        ("lora", "any"),
        ("average", "any"),
        ("bitfit", "any"),
        ("full", "f32"),
        ("top_layers", "f32"),
        ("qlora", "its own: nf4+dq"),
    ] {
        assert_eq!(storages(kind), expected, "{kind}");
    }
}

/// The methods that pack what they leave of a weight: they do not start at the packed base.
const PACKED_OTHERWISE: [&str; 2] = ["pissa", "olora"];

fn contract_over<M: MethodConfig>(setting: &Setting<'_>) {
    if !PACKED_OTHERWISE.contains(&M::INFO.kind) {
        contract::identity_at_init::<M, GptHost>(setting);
    }
    contract::merge_preserves_the_output::<M, GptHost>(setting);
    contract::saved_alone_and_restored::<M, GptHost>(setting);
    contract::targets_that_match_nothing_are_an_error::<M, GptHost>(setting);
    contract::loss_falls::<M, GptHost>(setting);
    contract::count_equals_closed_form::<M, GptHost>(setting);
}

#[test]
fn adapters_keep_the_contract_over_packed_weights() {
    macro_rules! over {
        ($storage:expr; $($method:ty),* $(,)?) => {
            let (storage, registry) = ($storage, Registry::builtin());
            let setting = Setting {
                storage: Some(&storage),
                ..dense(&registry)
            };
            $(
                if Entry::of::<$method>().storages(&Registry::builtin()) == "any" {
                    contract_over::<$method>(&setting);
                }
            )*
        };
    }
    macro_rules! over_nf4 {
        ($($method:ty),* $(,)?) => { over!(peft_qlora::Nf4::default(); $($method),*); };
    }
    use peft_adapter::{Houlsby, LoReft, PTuning, Prefix};
    use peft_lora::{Dora, Lora, Pissa, Vera};
    with_methods!(over_nf4);
    over!(peft_qlora::Fp4::new(32, false); Houlsby, Prefix, PTuning, Lora);
    over!(peft_qlora::Int8 {}; Houlsby, Prefix, LoReft, Lora, Vera, Dora, Pissa);
}
