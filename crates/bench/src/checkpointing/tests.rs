use super::*;
use models::Model;
use peft_core::Init;

use crate::batching::{collate, pack};
use crate::data::Example;
use crate::testing::{assert_same, bert, examples, gpt2, llama, methods, trainee, whole};

fn check_every_method(build: fn(&mut Init) -> Model) {
    for (kind, method) in methods(build) {
        let (trainee, device) = trainee(build, &*method);
        let examples = examples(&trainee.model.host);
        let rows: Vec<&Example> = examples.iter().collect();
        let batch = collate(&rows, &trainee.model.host, &device);
        eprintln!("{kind}");
        assert_same(
            &trainee,
            1e-6,
            step(&trainee, &batch),
            whole(&trainee, &batch),
        );
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

#[test]
fn layers_left_out_of_a_step_are_left_out_of_both_runs() {
    let (trainee, device) = trainee(gpt2, &peft_lora::Lora::default());
    let examples = examples(&trainee.model.host);
    let rows: Vec<&Example> = examples.iter().collect();
    let mut batch = collate(&rows, &trainee.model.host, &device);
    let (_, all) = step(&trainee, &batch);
    batch.drops.layers.extend([0, 2]);
    let (loss, some) = step(&trainee, &batch);
    assert!(some.len() < all.len());
    assert_same(&trainee, 1e-6, (loss, some), whole(&trainee, &batch));
    batch.drops.layers.insert(1);
    assert!(
        step(&trainee, &batch).1.is_empty(),
        "nothing is left to train"
    );
}

#[test]
fn packed_texts_have_the_gradients_of_one_backward_pass() {
    let (trainee, device) = trainee(llama, &peft_lora::Lora::default());
    let examples = examples(&trainee.model.host);
    let rows: Vec<&Example> = examples.iter().collect();
    let batch = pack(&rows, &trainee.model.host, &device);
    assert_same(
        &trainee,
        1e-6,
        step(&trainee, &batch),
        whole(&trainee, &batch),
    );
}
