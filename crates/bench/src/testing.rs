//! What tests of training steps share: small models, texts, and the comparison of gradients.

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn::train::TrainStep;
use models::{BertConfig, Family, Gpt2Config, LlamaConfig, Model};
use peft_core::contract::perturbed;
use peft_core::{Host, Init, Method, adapt};
use serde_json::{Value, json};

use crate::batching::TrainBatch;
use crate::data::{Example, Target};
use crate::registry::{Entry, Registry};
use crate::trainee::Trainee;

/// Size of the vocabularies.
pub(crate) const VOCAB: usize = 61;

pub(crate) fn gpt2(init: &mut Init) -> Model {
    Model::random_gpt2(Gpt2Config::new(VOCAB, 48, 16, 3, 2), init).unwrap()
}

pub(crate) fn bert(init: &mut Init) -> Model {
    let json = json!({
        "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 48, "type_vocab_size": 2
    });
    let config = BertConfig::from_json(Family::Bert, &json, Path::new("bert")).unwrap();
    Model::random_bert(config, init).unwrap()
}

pub(crate) fn llama(init: &mut Init) -> Model {
    let json = json!({
        "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 48, "rms_norm_eps": 1e-6, "tie_word_embeddings": true
    });
    let config = LlamaConfig::from_json(&json, Path::new("qwen3")).unwrap();
    Model::random_llama(config, init).unwrap()
}

/// With a window shorter than the texts.
pub(crate) fn mistral(init: &mut Init) -> Model {
    let json = json!({
        "model_type": "mistral", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 48, "rms_norm_eps": 1e-6, "sliding_window": 6
    });
    let config = LlamaConfig::from_json(&json, Path::new("mistral")).unwrap();
    Model::random_llama(config, init).unwrap()
}

/// A model that trains with this method, off its start.
pub(crate) fn trainee(build: fn(&mut Init) -> Model, method: &dyn Method) -> (Trainee, Device) {
    let device = Device::flex().autodiff();
    let mut init = Init::new(5, &device);
    let base = build(&mut init);
    let model = adapt(base, method, None, &mut init).unwrap();
    let model = perturbed(model, 0.05);
    (Trainee { model }, device)
}

/// Four texts of different lengths, of what the model learns.
pub(crate) fn examples(model: &Model) -> Vec<Example> {
    let causal = model.is_causal();
    let example = |row: usize| Example {
        task: 0,
        ids: (0..9 + 2 * row)
            .map(|i| ((row * 13 + i * i * 7) % VOCAB) as u32)
            .collect(),
        target: match causal {
            true => Target::Completion(3),
            false => Target::Class {
                output: row % 2,
                of: 0..2,
            },
        },
        input: String::new(),
        expected: String::new(),
    };
    (0..4).map(example).collect()
}

/// The kinds of the registry's methods and an example of each without dropout; but of L0 adapters,
/// whose gates are drawn anew in every pass.
pub(crate) fn configs() -> Vec<(&'static str, Value)> {
    let registry = Registry::builtin();
    let config = |entry: &Entry| {
        let (kind, mut config) = (entry.info.kind, entry.example());
        for random in ["dropout", "stochastic_depth"] {
            let mut certain = config.clone();
            certain[random] = json!(0.0);
            // Most methods have neither.
            if registry.parse(kind, &certain).is_ok() {
                config = certain;
            }
        }
        (kind, config)
    };
    let certain = registry.entries().iter();
    let certain = certain.filter(|entry| entry.info.kind != "l0_adapter");
    certain.map(config).collect()
}

/// The methods of [`configs`] that this model takes.
pub(crate) fn methods(build: fn(&mut Init) -> Model) -> Vec<(&'static str, Arc<dyn Method>)> {
    let registry = Registry::builtin();
    let geometry = build(&mut Init::new(5, &Device::flex())).geometry();
    let configs = configs().into_iter();
    let methods = configs.map(|(kind, config)| (kind, registry.parse(kind, &config).unwrap()));
    // What is refused for an architecture the tests of the method check.
    methods
        .filter(|(_, method)| method.check(&geometry).is_ok())
        .collect()
}

/// One backward pass through the whole model.
pub(crate) fn whole(trainee: &Trainee, batch: &TrainBatch) -> (f32, GradientsParams) {
    let output = TrainStep::step(trainee, batch.clone());
    (output.item.0.into_scalar::<f32>(), output.grads)
}

/// The gradient of every parameter that has one.
fn values(module: &Trainee, grads: &GradientsParams) -> Vec<Vec<f32>> {
    struct Values<'a>(&'a GradientsParams, Vec<Vec<f32>>);
    impl ModuleVisitor for Values<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let grad = self.0.get::<D>(param.id);
            let values = grad.map(|grad| grad.into_data().try_to_vec().unwrap());
            self.1.extend(values);
        }
    }
    let mut values = Values(grads, Vec::new());
    module.visit(&mut values);
    values.1
}

/// Fails where the losses or the gradients of two steps differ by more than this share.
#[track_caller]
pub(crate) fn assert_same(
    trainee: &Trainee,
    within: f32,
    found: (f32, GradientsParams),
    expected: (f32, GradientsParams),
) {
    let (loss, wanted) = (found.0, expected.0);
    assert!(
        (loss - wanted).abs() <= within * wanted.abs(),
        "loss {loss}, expected {wanted}"
    );
    let (found, expected) = (values(trainee, &found.1), values(trainee, &expected.1));
    assert_eq!(found.len(), expected.len(), "parameters with a gradient");
    let largest = |values: &[f32]| values.iter().fold(0f32, |max, v| max.max(v.abs()));
    let all = expected
        .iter()
        .map(|grad| largest(grad))
        .fold(0.0, f32::max);
    assert!(all > 0.0, "some gradient is not zero");
    for (found, expected) in found.iter().zip(&expected) {
        // Of a gradient far below the others no more is asked than of theirs.
        let size = largest(expected).max(0.05 * all);
        let worst = found
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs() / size)
            .fold(0.0, f32::max);
        assert!(worst <= within, "{worst:e} of {size}");
    }
}
