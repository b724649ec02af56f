use burn::tensor::Device;
use burn::train::TrainStep;
use models::{BertConfig, Family, Gpt2Config, LlamaConfig, Model};
use peft_core::contract::{perturbed, random};
use peft_core::{Init, Storage, adapt};

use super::*;
use crate::batching::collate;
use crate::data::{Example, Target};
use crate::stepper::tests::values;

const WIDTH: usize = 16;

type Build = fn(&mut Init) -> Model;

fn device() -> Device {
    Device::flex().autodiff()
}

fn gpt2(init: &mut Init) -> Model {
    Model::random_gpt2(Gpt2Config::new(31, 16, WIDTH, 2, 2), init).unwrap()
}

fn llama(init: &mut Init) -> Model {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 31, "hidden_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 16,
        "initializer_range": 0.1
    });
    let config = LlamaConfig::from_json(&config, "test".as_ref()).unwrap();
    Model::random_llama(config, init).unwrap()
}

fn bert(init: &mut Init) -> Model {
    let config = serde_json::json!({
        "vocab_size": 31, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 20, "max_position_embeddings": 16, "type_vocab_size": 2,
        "num_labels": 3
    });
    let config = BertConfig::from_json(Family::Bert, &config, "test".as_ref()).unwrap();
    Model::random_bert(config, init).unwrap()
}

/// A model of which only LoRA trains, all of it away from its start.
fn trainee(build: Build, storage: Option<&dyn Storage>) -> Trainee {
    let mut init = Init::new(3, &device());
    let base = build(&mut init);
    let lora = serde_json::json!({"rank": 2, "targets": "all-linear"});
    let lora: peft_lora::Lora = serde_json::from_value(lora).unwrap();
    let model = adapt(base, &lora, storage, &mut init).unwrap();
    Trainee {
        model: perturbed(model, 0.1),
    }
}

/// Two rows, the second of them padded.
fn batch(trainee: &Trainee) -> TrainBatch {
    let host = &trainee.model.host;
    let example = |length: u32| Example {
        task: 0,
        ids: (0..length).map(|i| (5 + i * 7) % 31).collect(),
        target: match host.is_causal() {
            true => Target::Completion(2),
            false => Target::Class {
                output: length as usize % 3,
                of: 0..3,
            },
        },
        input: String::new(),
        expected: String::new(),
    };
    collate(&[&example(8), &example(5)], host, &device())
}

fn floats<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    let values: Vec<f32> = tensor.to_data().try_to_vec().unwrap();
    values.into_iter().map(f64::from).collect()
}

fn under(batch: &TrainBatch, change: &[f64]) -> TrainBatch {
    let [rows, length] = batch.batch.ids.dims();
    let values: Vec<f32> = change.iter().map(|v| *v as f32).collect();
    let data = TensorData::new(values, [rows, length, WIDTH]);
    let mut batch = batch.clone();
    batch.batch.perturbation = Some(Tensor::from_data(data, &device()));
    batch
}

/// The gradients of what trains under a fixed change, by the ordinary training step.
fn gradients_under(trainee: &Trainee, batch: &TrainBatch, change: &[f64]) -> Vec<f32> {
    let output = TrainStep::step(trainee, under(batch, change));
    values(trainee, &output.grads)
}

fn slope_at(trainee: &Trainee, batch: &TrainBatch, change: &[f64]) -> Vec<f64> {
    let change = under(batch, change).batch.perturbation.unwrap();
    floats(&attack(trainee, batch, change).slope)
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Rows of a flat `[2, sequence, d]`, each scaled by a factor of its norm.
fn scaled(change: &[f64], factor: impl Fn(f64) -> f64) -> Vec<f64> {
    let rows = change.chunks(change.len() / 2);
    rows.flat_map(|row| {
        let by = factor(norm(row));
        row.iter().map(move |v| v * by)
    })
    .collect()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0f32, |max, v| max.max(v.abs()));
    assert!(largest > 0.0 && found.len() == expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-4 * largest, "{a} {b}, of {largest}");
    }
}

#[test]
fn the_slope_of_a_change_is_that_of_finite_differences_though_the_embedding_is_frozen() {
    let nf4 = peft_qlora::Nf4::new(32, false);
    let packed: &dyn Storage = &nf4;
    let models = [
        ("gpt2", gpt2 as Build, None),
        ("gpt2 over nf4", gpt2, Some(packed)),
        ("llama", llama, None),
        ("bert", bert, None),
    ];
    for (name, build, storage) in models {
        let trainee = trainee(build, storage);
        let batch = batch(&trainee);
        let size = 2 * 8 * WIDTH;
        let at = floats(&random([size], &Device::flex()).mul_scalar(0.02));
        let slope = slope_at(&trainee, &batch, &at);
        let steepest = norm(&slope);
        let along: Vec<f64> = slope.iter().map(|v| v / steepest).collect();
        let other = floats(&random([size], &Device::flex()));
        let other: Vec<f64> = other.iter().map(|v| v / norm(&other)).collect();
        for direction in [along, other] {
            let loss = |by: f64| {
                let moved: Vec<_> = at.iter().zip(&direction).map(|(a, d)| a + by * d).collect();
                let loss = trainee.loss(&under(&batch, &moved));
                f64::from(loss.into_scalar::<f32>())
            };
            let step = 1e-3;
            let measured = (loss(step) - loss(-step)) / (2.0 * step);
            let expected: f64 = slope.iter().zip(&direction).map(|(s, d)| s * d).sum();
            assert!(
                (measured - expected).abs() < 0.02 * steepest,
                "{name}: {measured} and {expected}, steepest {steepest}"
            );
        }
        // What stands behind the end of the second row changes nothing.
        let padding = &slope[(8 + 5) * WIDTH..];
        assert!(padding.iter().all(|v| *v == 0.0), "{name}: {padding:?}");
    }
}

#[test]
fn fgm_adds_the_gradients_with_and_without_a_step_along_the_slope() {
    for build in [gpt2 as Build, bert] {
        let trainee = trainee(build, None);
        let batch = batch(&trainee);
        let none = vec![0.0; 2 * 8 * WIDTH];
        let change = scaled(&slope_at(&trainee, &batch, &none), |norm| 0.02 / norm);
        let plain = TrainStep::step(&trainee, batch.clone());
        let changed = gradients_under(&trainee, &batch, &change);
        let without = values(&trainee, &plain.grads);
        let expected: Vec<f32> = without.iter().zip(&changed).map(|(a, b)| a + b).collect();
        assert!(without.iter().zip(&changed).any(|(a, b)| a != b));

        let mut adversary = Adversary::new(Adversarial::Fgm { epsilon: 0.02 }, WIDTH, 1);
        let (loss, grads) = adversary.gradients(&trainee, batch.clone());
        assert_close(&values(&trainee, &grads), &expected);
        assert_eq!(loss, plain.item.0.into_scalar::<f32>(), "the plain loss");
        let higher: f32 = trainee.loss(&under(&batch, &change)).into_scalar();
        assert!(higher > loss, "{higher} {loss}: the change is an attack");
    }
}

#[test]
fn freelb_averages_the_gradients_along_projected_ascent() {
    let (step_size, epsilon, steps) = (0.3, 0.4, 3);
    let trainee = trainee(gpt2, None);
    let batch = batch(&trainee);
    let mut change = vec![0.0; 2 * 8 * WIDTH];
    let mut expected = Vec::new();
    let mut shortened = 0;
    for _ in 0..steps {
        let grads = gradients_under(&trainee, &batch, &change);
        expected.resize(grads.len(), 0.0);
        let share = |grad: &f32| grad / steps as f32;
        expected
            .iter_mut()
            .zip(&grads)
            .for_each(|(sum, grad)| *sum += share(grad));
        let step = scaled(&slope_at(&trainee, &batch, &change), |norm| {
            step_size / norm
        });
        let longer: Vec<f64> = change.iter().zip(step).map(|(c, s)| c + s).collect();
        shortened += usize::from(norm(&longer[..8 * WIDTH]) > epsilon);
        change = scaled(&longer, |norm| f64::min(epsilon / norm, 1.0));
    }
    assert!(shortened > 0, "the limit is part of the test");
    let config = Adversarial::Freelb {
        steps,
        step_size,
        epsilon,
        init: Some(0.0),
    };
    let (_, grads) = Adversary::new(config, WIDTH, 1).gradients(&trainee, batch);
    assert_close(&values(&trainee, &grads), &expected);
}

#[test]
fn a_random_start_is_small_leaves_padding_alone_and_follows_the_seed() {
    let trainee = trainee(gpt2, None);
    let batch = batch(&trainee);
    let start = |seed: u64| {
        let config = Adversarial::Fgm { epsilon: 1.0 };
        floats(&Adversary::new(config, WIDTH, seed).start(&batch, 0.6))
    };
    let values = start(1);
    let rows: Vec<_> = values.chunks(8 * WIDTH).collect();
    for (row, tokens) in rows.iter().zip([8, 5]) {
        let (real, padding) = row.split_at(tokens * WIDTH);
        let limit = 0.6 / ((tokens * WIDTH) as f64).sqrt();
        assert!(real.iter().all(|v| v.abs() <= limit + 1e-9));
        assert!(padding.iter().all(|v| *v == 0.0));
        // Uniform values have a third of the square of their limit on average.
        let rms = norm(real) / (real.len() as f64).sqrt();
        assert!((rms / limit - (1.0f64 / 3.0).sqrt()).abs() < 0.1, "{rms}");
    }
    assert_eq!(start(1), values);
    assert_ne!(start(2), values);
}

#[test]
fn impossible_settings_are_named() {
    let fgm = |epsilon| Adversarial::Fgm { epsilon }.check();
    assert!(fgm(1.0).is_ok());
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = fgm(bad).unwrap_err();
        assert!(error.contains("`train.adversarial.epsilon`"), "{error}");
    }
    let freelb = |steps, init| {
        Adversarial::Freelb {
            steps,
            step_size: 0.1,
            epsilon: 0.1,
            init,
        }
        .check()
    };
    assert!(freelb(2, Some(0.0)).is_ok());
    assert!(freelb(0, None).unwrap_err().contains("adversarial.steps"));
    assert!(
        freelb(1, Some(-1.0))
            .unwrap_err()
            .contains("adversarial.init")
    );
}
