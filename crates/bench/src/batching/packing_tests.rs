use super::*;
use peft_core::Init;

use crate::testing::{VOCAB, assert_same, examples, gpt2, llama, methods, mistral, trainee, whole};
use crate::trainee::Trainee;

/// Methods that say that texts need rows of their own are refused before a batch is made.
fn check_every_method(build: fn(&mut Init) -> Model) {
    let methods = methods(build).into_iter();
    let mut checked = 0;
    for (kind, method) in methods.filter(|(_, method)| !method.needs_own_rows()) {
        let (trainee, device) = trainee(build, &*method);
        let examples = examples(&trainee.model.host);
        let rows: Vec<&Example> = examples.iter().collect();
        let padded = collate(&rows, &trainee.model.host, &device);
        let packed = pack(&rows, &trainee.model.host, &device);
        assert_eq!(packed.batch.ids.dims(), [1, padded.tokens], "{kind}");
        eprintln!("{kind}");
        let (packed, padded) = (whole(&trainee, &packed), whole(&trainee, &padded));
        assert_same(&trainee, 2e-5, packed, padded);
        checked += 1;
    }
    assert!(checked > 20, "only {checked} methods were checked");
}

#[test]
fn every_method_learns_the_same_from_packed_texts_on_gpt2() {
    check_every_method(gpt2);
}

#[test]
fn every_method_learns_the_same_from_packed_texts_on_llama() {
    check_every_method(llama);
}

#[test]
fn every_method_learns_the_same_from_packed_texts_under_a_sliding_window() {
    check_every_method(mistral);
}

fn loss(trainee: &Trainee, batch: &TrainBatch) -> f64 {
    f64::from(trainee.loss(batch).into_scalar::<f32>())
}

#[test]
fn the_loss_of_packed_texts_is_the_mean_over_the_tokens_of_each_alone() {
    let (trainee, device) = trainee(llama, &peft_lora::Lora::default());
    let host = &trainee.model.host;
    let examples = examples(host);
    let rows: Vec<&Example> = examples.iter().collect();
    let packed = loss(&trainee, &pack(&rows, host, &device));
    let (mut sum, mut all) = (0.0, 0.0);
    for example in &examples {
        let alone = collate(&[example], host, &device);
        let Targets::Tokens { count, .. } = &alone.targets else {
            panic!("tokens are to be learnt")
        };
        sum += loss(&trainee, &alone) * *count as f64;
        all += *count as f64;
    }
    assert!(
        (packed - sum / all).abs() < 1e-5 * packed,
        "{packed} {}",
        sum / all
    );
}

#[test]
fn no_packed_text_learns_from_another() {
    let (trainee, device) = trainee(gpt2, &peft_lora::Lora::default());
    let host = &trainee.model.host;
    let mut examples = examples(host);
    let hidden = |examples: &[Example]| -> Vec<f32> {
        let rows: Vec<&Example> = examples.iter().collect();
        let batch = pack(&rows, host, &device).batch;
        let states = host.hidden(&batch, None, &trainee.model.pass());
        states.into_data().try_to_vec().unwrap()
    };
    let before = hidden(&examples);
    let own =
        examples[0].ids.len() * before.len() / examples.iter().map(|e| e.ids.len()).sum::<usize>();
    examples[0]
        .ids
        .iter_mut()
        .for_each(|id| *id = (*id + 1) % VOCAB as u32);
    let after = hidden(&examples);
    assert_ne!(before[..own], after[..own]);
    assert_eq!(before[own..], after[own..]);
}
