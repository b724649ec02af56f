use super::*;
use burn::module::{ModuleVisitor, Param};
use burn::train::TrainStep;
use models::{BertConfig, Family, Gpt2Config, LlamaConfig, Model};
use peft_core::contract::perturbed;
use peft_core::{Host, Init, Method, adapt};
use serde_json::json;
use std::path::Path;

use crate::batching::collate;
use crate::data::{Example, Target};
use crate::registry::Registry;

const VOCAB: usize = 61;

fn gpt2(init: &mut Init) -> Model {
    Model::random_gpt2(Gpt2Config::new(VOCAB, 48, 16, 3, 2), init).unwrap()
}

fn bert(init: &mut Init) -> Model {
    let json = json!({
        "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 48, "type_vocab_size": 2
    });
    let config = BertConfig::from_json(Family::Bert, &json, Path::new("bert")).unwrap();
    Model::random_bert(config, init).unwrap()
}

fn llama(init: &mut Init) -> Model {
    let json = json!({
        "model_type": "qwen3", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 48, "rms_norm_eps": 1e-6, "tie_word_embeddings": true
    });
    let config = LlamaConfig::from_json(&json, Path::new("qwen3")).unwrap();
    Model::random_llama(config, init).unwrap()
}

/// A model that trains with this method, off its start.
fn trainee(build: fn(&mut Init) -> Model, method: &dyn Method) -> (Trainee, Device) {
    let device = Device::flex().autodiff();
    let mut init = Init::new(5, &device);
    let base = build(&mut init);
    let model = adapt(base, method, None, &mut init).unwrap();
    let model = perturbed(model, 0.05);
    (Trainee { model }, device)
}

/// Four texts of different lengths.
fn batch(trainee: &Trainee, device: &Device) -> TrainBatch {
    let causal = trainee.model.host.is_causal();
    let example = |row: usize| Example {
        ids: (0..9 + 2 * row)
            .map(|i| ((row * 13 + i * i * 7) % VOCAB) as u32)
            .collect(),
        target: match causal {
            true => Target::Completion(3),
            false => Target::Class(row % 2),
        },
        input: String::new(),
        expected: String::new(),
    };
    let examples: Vec<Example> = (0..4).map(example).collect();
    let rows: Vec<&Example> = examples.iter().collect();
    collate(&rows, &trainee.model.host, device)
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

#[track_caller]
fn assert_same(trainee: &Trainee, found: (f32, GradientsParams), expected: (f32, GradientsParams)) {
    let close = |a: f32, b: f32, size: f32| (a - b).abs() <= 1e-6 * size;
    assert!(
        close(found.0, expected.0, expected.0.abs()),
        "{} {}",
        found.0,
        expected.0
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
        assert!(worst <= 1e-6, "{worst:e} of {size}");
    }
}

/// One backward pass through the whole model.
fn whole(trainee: &Trainee, batch: &TrainBatch) -> (f32, GradientsParams) {
    let output = TrainStep::step(trainee, batch.clone());
    (output.item.0.into_scalar::<f32>(), output.grads)
}

fn check_every_method(build: fn(&mut Init) -> Model) {
    let registry = Registry::builtin();
    for entry in registry.entries() {
        let mut config = entry.example();
        if let Some(dropout) = config.get_mut("dropout") {
            *dropout = json!(0.0);
        }
        let method = registry.parse(entry.info.kind, &config).unwrap();
        let probe = build(&mut Init::new(5, &Device::flex()));
        if method.check(&probe.geometry()).is_err() {
            // Refused for this architecture, which tests of the method check.
            continue;
        }
        let (trainee, device) = trainee(build, &*method);
        let batch = batch(&trainee, &device);
        assert_same(&trainee, step(&trainee, &batch), whole(&trainee, &batch));
    }
}

#[test]
fn every_method_has_the_gradients_of_one_backward_pass_on_gpt2() {
    check_every_method(gpt2);
}

#[test]
fn every_method_has_the_gradients_of_one_backward_pass_on_bert() {
    check_every_method(bert);
}

#[test]
fn every_method_has_the_gradients_of_one_backward_pass_on_llama() {
    check_every_method(llama);
}
