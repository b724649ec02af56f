//! Gradient checkpointing where a whole process is watched: its memory, and the random numbers that
//! all its threads draw from. The tests take turns.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bench::batching::{Targets, TrainBatch, collate};
use bench::checkpointing::{step, step_seeded};
use bench::data::{Example, Target};
use bench::memory::{allocated, take_peak_allocated};
use bench::trainee::Trainee;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn::train::TrainStep;
use models::{Gpt2Config, Model};
use peft_core::contract::perturbed;
use peft_core::{Host, Init, Method, adapt};

const VOCAB: usize = 32;
const WIDTH: usize = 128;
const ROWS: usize = 8;
const LENGTH: usize = 32;

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn trainee(layers: usize, method: &dyn Method, device: &Device) -> Trainee {
    let mut init = Init::new(5, device);
    let config = Gpt2Config::new(VOCAB, LENGTH, WIDTH, layers, 2);
    let base = Model::random_gpt2(config, &mut init).unwrap();
    let model = adapt(base, method, None, &mut init).unwrap();
    let model = perturbed(model, 0.05);
    Trainee { model }
}

fn batch(trainee: &Trainee, device: &Device) -> TrainBatch {
    let example = |row: usize| Example {
        task: 0,
        ids: (0..LENGTH)
            .map(|i| ((row * 13 + i * i * 7) % VOCAB) as u32)
            .collect(),
        target: Target::Completion(1),
        input: String::new(),
        expected: String::new(),
    };
    let examples: Vec<Example> = (0..ROWS).map(example).collect();
    let rows: Vec<&Example> = examples.iter().collect();
    collate(&rows, &trainee.model.host, device)
}

/// One backward pass through the whole model.
fn whole(trainee: &Trainee, batch: &TrainBatch) -> (f32, GradientsParams) {
    let output = TrainStep::step(trainee, batch.clone());
    (output.item.0.into_scalar::<f32>(), output.grads)
}

type Step = fn(&Trainee, &TrainBatch) -> (f32, GradientsParams);

/// Most bytes that a step has allocated at once, the second one: the first starts threads.
fn peak(layers: usize, step: Step) -> u64 {
    let device = Device::flex().autodiff();
    let method = peft_lora::Lora {
        rank: 1,
        ..peft_lora::Lora::default()
    };
    let trainee = trainee(layers, &method, &device);
    let batch = batch(&trainee, &device);
    let mut beyond = 0;
    for _ in 0..2 {
        take_peak_allocated();
        let before = allocated();
        drop(step(&trainee, &batch));
        beyond = take_peak_allocated().saturating_sub(before);
    }
    beyond
}

#[test]
fn a_layer_more_costs_its_input_and_not_its_activations() {
    let _turn = turn();
    let input = (4 * ROWS * LENGTH * WIDTH) as u64;
    let checkpointed: Step = step;
    let (few, many) = (peak(2, checkpointed), peak(10, checkpointed));
    let (few_whole, many_whole) = (peak(2, whole), peak(10, whole));
    let a_layer = many.saturating_sub(few) / 8;
    assert!(a_layer >= input / 2, "the inputs are counted: {a_layer}");
    // Handles of the layer's parameters and the gradients of its adapter come on top.
    assert!(a_layer < 5 * input / 4, "{a_layer} of {input}");
    let a_layer_whole = (many_whole - few_whole) / 8;
    assert!(a_layer_whole > 8 * input, "{a_layer_whole} of {input}");
    assert!(2 * many < many_whole, "{many} of {many_whole}");
}

/// One graph over all stages, with the random numbers of the staged run.
fn in_one_graph(trainee: &Trainee, batch: &TrainBatch, seed: u64) -> (f32, GradientsParams) {
    let (host, pass) = (&trainee.model.host, trainee.model.pass());
    let device = batch.batch.ids.device();
    device.seed(seed);
    let (mut x, context) = host.enter(&batch.batch, &pass);
    for index in 0..host.geometry().layers {
        device.seed(seed + index as u64 + 1);
        x = host.layer(index, x, &context, &pass);
    }
    let Targets::Tokens { places, next, .. } = &batch.targets else {
        panic!("tokens are to be learnt")
    };
    let learned = (places.clone(), next.clone());
    let loss = host.completion_loss_of(x, &batch.batch, learned, &pass);
    let grads = GradientsParams::from_grads(loss.backward(), trainee);
    (loss.into_scalar::<f32>(), grads)
}

/// The gradient of every parameter that has one.
fn values(trainee: &Trainee, grads: &GradientsParams) -> Vec<f32> {
    struct Values<'a>(&'a GradientsParams, Vec<f32>);
    impl burn::module::ModuleVisitor for Values<'_> {
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                self.1.extend(grad.into_data().try_to_vec::<f32>().unwrap());
            }
        }
    }
    let mut values = Values(grads, Vec::new());
    trainee.visit(&mut values);
    values.1
}

#[test]
fn a_layer_computed_again_drops_out_what_it_did_the_first_time() {
    let _turn = turn();
    let lora = peft_lora::Lora {
        dropout: 0.4,
        ..peft_lora::Lora::default()
    };
    let houlsby: peft_adapter::Houlsby =
        serde_json::from_value(serde_json::json!({ "bottleneck": 4, "dropout": 0.4 })).unwrap();
    let methods: [&dyn Method; 2] = [&lora, &houlsby];
    for method in methods {
        let device = Device::flex().autodiff();
        let trainee = trainee(3, method, &device);
        let batch = batch(&trainee, &device);
        let staged = step_seeded(&trainee, &batch, 11);
        let expected = in_one_graph(&trainee, &batch, 11);
        assert!((staged.0 - expected.0).abs() <= 1e-6 * expected.0.abs());
        let (found, wanted) = (values(&trainee, &staged.1), values(&trainee, &expected.1));
        let largest = wanted.iter().fold(0f32, |max, v| max.max(v.abs()));
        assert!(largest > 0.0 && found.len() == wanted.len());
        let differences = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst <= 1e-6 * largest, "{worst:e} of {largest:e}");
        let other = step_seeded(&trainee, &batch, 12).0;
        assert_ne!(staged.0, other, "another seed drops out other values");
    }
}

#[test]
fn every_step_draws_new_random_numbers_that_follow_the_devices() {
    let _turn = turn();
    let lora = peft_lora::Lora {
        dropout: 0.4,
        ..peft_lora::Lora::default()
    };
    let device = Device::flex().autodiff();
    let trainee = trainee(2, &lora, &device);
    let batch = batch(&trainee, &device);
    let losses = |seed| {
        device.seed(seed);
        [0; 3].map(|_| step(&trainee, &batch).0)
    };
    let first = losses(1);
    assert_eq!(first, losses(1));
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    assert_ne!(first[0], losses(2)[0]);
}
