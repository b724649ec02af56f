//! The loss of rows whose tasks have heads of their own.

use burn::tensor::{Device, TensorData};
use models::{BertConfig, Family};
use peft_core::{Init, Method, adapt, state};
use serde_json::json;

use super::*;
use crate::batching::collate;
use crate::data::{Example, Target};
use crate::testing::VOCAB;

/// The outputs of the two tasks.
const HEADS: [std::ops::Range<usize>; 2] = [0..2, 2..5];

fn device() -> Device {
    Device::flex().autodiff()
}

/// A classifier of five outputs that trains with LoRA, with or without a layer that heads share.
fn trainee(family: Family) -> Trainee {
    let json = json!({
        "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 48, "type_vocab_size": 2,
        "num_labels": 5
    });
    let config = BertConfig::from_json(family, &json, std::path::Path::new("bert")).unwrap();
    let mut init = Init::new(5, &device());
    let base = Model::random_bert(config, &mut init).unwrap();
    let lora: peft_lora::Lora = serde_json::from_value(json!({"rank": 2})).unwrap();
    lora.check(&peft_core::Host::geometry(&base)).unwrap();
    let model = adapt(base, &lora, None, &mut init).unwrap();
    let model = peft_core::contract::perturbed(model, 0.2);
    Trainee { model }
}

fn example(task: usize, class: usize) -> Example {
    let of = HEADS[task].clone();
    Example {
        task,
        ids: (0..5 + task + 2 * class)
            .map(|i| (3 + i * 7) as u32 % VOCAB as u32)
            .collect(),
        target: Target::Class {
            output: of.start + class,
            of,
        },
        input: String::new(),
        expected: String::new(),
    }
}

fn floats(data: TensorData) -> Vec<f32> {
    data.try_to_vec().unwrap()
}

/// The mean over rows of `log(sum of exp) - own`, over the outputs of a row's own task alone.
fn by_hand(trainee: &Trainee, examples: &[&Example]) -> f64 {
    let loss = |example: &&Example| {
        let batch = collate(&[example], &trainee.model.host, &device()).batch;
        let logits = trainee
            .model
            .host
            .class_logits(&batch, &trainee.model.pass());
        let logits: Vec<f64> = floats(logits.into_data())
            .into_iter()
            .map(f64::from)
            .collect();
        let Target::Class { output, of } = &example.target else {
            panic!("a class")
        };
        let sum: f64 = logits[of.clone()].iter().map(|logit| logit.exp()).sum();
        sum.ln() - logits[*output]
    };
    examples.iter().map(loss).sum::<f64>() / examples.len() as f64
}

/// The gradients of the outputs' weights, a row of numbers for every input, and of their biases.
fn slopes(trainee: &Trainee, loss: Tensor<1>) -> Vec<Vec<f32>> {
    let grads = GradientsParams::from_grads(loss.backward(), trainee);
    let rows = state::parameters(&trainee.model);
    let id = |name: &str| {
        let row = rows.iter().find(|row| row.name.ends_with(name));
        row.unwrap_or_else(|| panic!("no `{name}`")).id
    };
    let weight = grads.get::<2>(id("classifier.weight")).unwrap();
    assert_eq!(weight.dims()[1], 5);
    let bias = grads.get::<1>(id("classifier.bias")).unwrap();
    let mut slopes: Vec<Vec<f32>> = floats(weight.into_data())
        .chunks(5)
        .map(<[f32]>::to_vec)
        .collect();
    slopes.push(floats(bias.into_data()));
    slopes
}

#[test]
fn the_loss_of_a_row_is_that_of_its_tasks_head() {
    let rows = [example(0, 1), example(1, 2), example(1, 0), example(0, 0)];
    for family in [Family::Bert, Family::Roberta] {
        let trainee = trainee(family);
        let all: Vec<_> = rows.iter().collect();
        for batch in [&all[..], &all[..1], &all[1..3]] {
            let loss = trainee.loss(&collate(batch, &trainee.model.host, &device()));
            let (found, expected) = (loss.into_scalar::<f32>(), by_hand(&trainee, batch));
            assert!(
                (f64::from(found) - expected).abs() < 1e-5,
                "{found} {expected}"
            );
        }
    }
}

#[test]
fn outputs_of_other_tasks_get_no_gradient_and_the_rows_own_do() {
    for family in [Family::Bert, Family::Roberta] {
        let trainee = trainee(family);
        for (task, own) in HEADS.into_iter().enumerate() {
            let rows = [example(task, 0), example(task, 1)];
            let rows: Vec<_> = rows.iter().collect();
            let loss = trainee.loss(&collate(&rows, &trainee.model.host, &device()));
            for slopes in slopes(&trainee, loss) {
                for (output, slope) in slopes.into_iter().enumerate() {
                    let is_own = own.contains(&output);
                    assert_eq!(
                        slope != 0.0,
                        is_own,
                        "task {task}, output {output}: {slope}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_classifier_of_one_task_has_no_outputs_to_leave_out() {
    let trainee = trainee(Family::Bert);
    let mut whole = example(0, 1);
    whole.target = Target::Class {
        output: 1,
        of: 0..5,
    };
    let targets = |rows: &[&Example]| collate(rows, &trainee.model.host, &device()).targets;
    assert!(matches!(
        targets(&[&whole]),
        Targets::Classes { others: None, .. }
    ));
    let one = example(0, 1);
    assert!(matches!(
        targets(&[&one]),
        Targets::Classes {
            others: Some(_),
            ..
        }
    ));
}
