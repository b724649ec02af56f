use super::*;
use std::collections::HashMap;

use crate::batching::collate;
use crate::data::{Example, Target};
use crate::schedule::Decay;
use crate::study::TrainConfig;
use burn::tensor::Device;
use models::Gpt2Config;
use peft_core::{Consequences, Init, Method, Seams, adapt, trained};

fn model(method: &dyn Method, device: &Device) -> Adapted<Model> {
    let mut init = Init::new(0, device);
    let base = Model::random_gpt2(Gpt2Config::new(64, 16, 32, 2, 2), &mut init).unwrap();
    adapt(base, method, None, &mut init).unwrap()
}

fn stepper(device: &Device) -> Stepper {
    let model = model(&peft_adapter::Full {}, device);
    let schedule = Schedule::new(Decay::Constant, 1e-3, 0, 1);
    Stepper::new(model, Groups::one(0.0), schedule, 0.0)
}

fn examples() -> Vec<Example> {
    let example = |row: u32| Example {
        task: 0,
        ids: (0..8).map(|i| (row * 13 + i * 7) % 64).collect(),
        target: Target::Completion(1),
        input: String::new(),
        expected: String::new(),
    };
    (0..4).map(example).collect()
}

/// All gradients in the order of the module's parameters.
pub(crate) fn values(model: &Trainee, grads: &GradientsParams) -> Vec<f32> {
    struct Values<'a>(&'a GradientsParams, Vec<f32>);
    impl ModuleVisitor for Values<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                self.1.extend(grad.into_data().try_to_vec::<f32>().unwrap());
            }
        }
    }
    let mut values = Values(grads, Vec::new());
    model.visit(&mut values);
    values.1
}

#[test]
fn gradients_of_accumulated_batches_are_those_of_one_batch_of_all_rows() {
    let device = Device::flex().autodiff();
    let mut stepper = stepper(&device);
    let host = stepper.model().host.clone();
    let examples = examples();
    let batch = |rows: &[Example]| {
        let rows: Vec<&Example> = rows.iter().collect();
        collate(&rows, &host, &device)
    };
    let (loss, whole) = stepper.gradients(batch(&examples));
    let (losses, mean) = stepper.mean_gradients(vec![batch(&examples[..2]), batch(&examples[2..])]);
    assert!((losses / 2.0 - loss).abs() < 1e-5);
    let (whole, mean) = (
        values(stepper.trainee(), &whole),
        values(stepper.trainee(), &mean),
    );
    let largest = whole.iter().fold(0f32, |max, v| max.max(v.abs()));
    assert!(largest > 0.0 && whole.len() == mean.len());
    for (whole, mean) in whole.iter().zip(&mean) {
        assert!((whole - mean).abs() < 1e-5 * largest, "{whole} {mean}");
    }
}

/// A stepper with the settings of a study, at a constant rate of 0.01.
fn grouped(method: &dyn Method, settings: &str, device: &Device) -> Stepper {
    let model = model(method, device);
    let config: TrainConfig = toml::from_str(settings).unwrap();
    let groups = Groups::new(&model, method, &config).unwrap();
    Stepper::new(
        model,
        groups,
        Schedule::new(Decay::Constant, 0.01, 0, 9),
        0.0,
    )
}

/// The trained parameters by name.
fn weights(stepper: &Stepper) -> HashMap<String, Vec<f32>> {
    let names = trained(stepper.model()).into_iter();
    let value = |p: peft_core::Trained| {
        let data = state::tensors_of(stepper.model(), &HashSet::from([p.id]));
        let data = data.into_values().next().unwrap();
        (p.name, data.try_to_vec::<f32>().unwrap())
    };
    names.map(value).collect()
}

/// The gradients of the next step by name.
fn gradients(stepper: &mut Stepper, batch: TrainBatch) -> HashMap<String, Vec<f32>> {
    let (_, grads) = stepper.gradients(batch);
    let mut values = HashMap::new();
    struct Named<'a>(
        &'a GradientsParams,
        HashMap<ParamId, String>,
        &'a mut HashMap<String, Vec<f32>>,
    );
    impl ModuleVisitor for Named<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                let data = grad.into_data().try_to_vec().unwrap();
                self.2.insert(self.1[&param.id].clone(), data);
            }
        }
    }
    let names = trained(stepper.model()).into_iter().map(|p| (p.id, p.name));
    let mut visitor = Named(&grads, names.collect(), &mut values);
    stepper.trainee().visit(&mut visitor);
    values
}

/// AdamW of one parameter by the book.
struct Book {
    rate: f64,
    decay: f64,
    time: i32,
    moments: Vec<(f64, f64)>,
}

impl Book {
    fn step(&mut self, values: &mut [f32], grads: &[f32]) {
        self.moments.resize(values.len(), (0.0, 0.0));
        self.time += 1;
        for ((value, grad), (first, second)) in values.iter_mut().zip(grads).zip(&mut self.moments)
        {
            let grad = f64::from(*grad);
            *first = 0.9 * *first + 0.1 * grad;
            *second = 0.999 * *second + 0.001 * grad * grad;
            let mean = *first / (1.0 - 0.9f64.powi(self.time));
            let square = *second / (1.0 - 0.999f64.powi(self.time));
            let old = f64::from(*value);
            let change = mean / (square.sqrt() + 1e-8) + self.decay * old;
            *value = (old - self.rate * change) as f32;
        }
    }
}

/// Takes steps and follows every parameter with an AdamW of its own; `forget` says before which
/// steps an AdamW starts anew.
fn follow(
    mut stepper: Stepper,
    steps: usize,
    settings: impl Fn(&str) -> (f64, f64),
    forget: impl Fn(&str, usize) -> bool,
) -> Stepper {
    let device = Device::flex().autodiff();
    let examples = examples();
    let mut books: HashMap<String, Book> = HashMap::new();
    for step in 0..steps {
        let rows: Vec<&Example> = examples.iter().collect();
        let batch = || collate(&rows, &stepper.model().host, &device);
        let (batch, again) = (batch(), batch());
        let grads = gradients(&mut stepper, again);
        let mut expected = weights(&stepper);
        for (name, grad) in &grads {
            if forget(name, step) {
                books.remove(name);
            }
            let (rate, decay) = settings(name);
            let book = books.entry(name.clone()).or_insert_with(|| Book {
                rate,
                decay,
                time: 0,
                moments: Vec::new(),
            });
            book.step(expected.get_mut(name).unwrap(), grad);
        }
        stepper.step(vec![batch]);
        let found = weights(&stepper);
        assert_eq!(found.len(), expected.len());
        for (name, expected) in &expected {
            for (found, expected) in found[name].iter().zip(expected) {
                assert!((found - expected).abs() < 2e-6, "{name} in step {step}");
            }
        }
    }
    stepper
}

#[test]
fn every_group_takes_the_steps_of_an_adamw_with_its_own_rate_and_decay() {
    let device = Device::flex().autodiff();
    let settings = "weight_decay = 0.3\nlayer_decay = 0.5\nno_decay = [\"biases\"]\n\
                    rates = { norms = 4.0 }";
    let stepper = grouped(&peft_adapter::Full {}, settings, &device);
    let of = |name: &str| {
        let norm = if name.contains("ln_") { 4.0 } else { 1.0 };
        let depth = match name {
            _ if name.contains("h.1.") => 0.5,
            _ if name.contains("h.0.") => 0.25,
            _ if name.contains("wte") || name.contains("wpe") => 0.125,
            _ => 1.0,
        };
        let decay = if name.ends_with("bias") { 0.0 } else { 0.3 };
        (0.01 * norm * depth, decay)
    };
    follow(stepper, 3, of, |_, _| false);
}

#[test]
fn frozen_parameters_stay_bit_for_bit_and_train_again_later() {
    let device = Device::flex().autodiff();
    let settings = "weight_decay = 0.3\n\
                    freeze = [{ params = [\"norms\", \"h.0\"], from_epoch = 1, until_epoch = 2 }]";
    let mut stepper = grouped(&peft_adapter::Full {}, settings, &device);
    let is_frozen = |name: &String| name.contains("ln_") || name.contains("h.0.");
    let batch = |stepper: &Stepper| {
        let examples = examples();
        let rows: Vec<&Example> = examples.iter().collect();
        collate(&rows, &stepper.model().host, &device)
    };
    let saved = stepper.snapshot();
    for (epoch, freezes) in [(0, false), (1, true), (2, false)] {
        let before = weights(&stepper);
        stepper.enter_epoch(epoch);
        let next = batch(&stepper);
        let grads = gradients(&mut stepper, next);
        assert_eq!(grads.keys().any(is_frozen), !freezes, "epoch {epoch}");
        for _ in 0..2 {
            stepper.step(vec![batch(&stepper)]);
        }
        assert_eq!(
            stepper.snapshot().keys().collect::<Vec<_>>(),
            saved.keys().collect::<Vec<_>>()
        );
        stepper.set_frozen(Vec::new());
        let after = weights(&stepper);
        for (name, values) in &after {
            let stays = freezes && is_frozen(name);
            assert_eq!(*values == before[name], stays, "`{name}` in epoch {epoch}");
        }
    }
    stepper.enter_epoch(1);
    let model = stepper.into_model();
    assert_eq!(trained(&model).len(), saved.len());
}

/// Asks for a new start of the biases after every second step.
struct Forgetful(Vec<ParamId>);

impl Regulator for Forgetful {
    fn after_step(&mut self, step: &Step<'_>, _model: &mut dyn Seams) -> Consequences {
        assert!(step.gradients.len() > self.0.len());
        match step.number.is_multiple_of(2) {
            true => Consequences {
                restarted: self.0.clone(),
                rewarm: None,
            },
            false => Consequences::default(),
        }
    }
}

#[test]
fn a_regulator_can_have_the_optimizer_forget_single_parameters() {
    let device = Device::flex().autodiff();
    let settings = "weight_decay = 0.3\nno_decay = [\"ln_1\"]";
    let stepper = grouped(&peft_adapter::Full {}, settings, &device);
    let biases = trained(stepper.model()).into_iter().filter(|p| p.is_bias());
    let forgetful = Forgetful(biases.map(|p| p.id).collect());
    let stepper = stepper.regulated(Some(Box::new(forgetful)));
    let of = |name: &str| (0.01, if name.contains("ln_1") { 0.0 } else { 0.3 });
    let forget = |name: &str, step: usize| name.ends_with("bias") && step.is_multiple_of(2);
    follow(stepper, 5, of, forget);
}

/// Asks for a new rise of the learning rate after the third step.
struct Rewarming;

impl Regulator for Rewarming {
    fn after_step(&mut self, step: &Step<'_>, _model: &mut dyn Seams) -> Consequences {
        Consequences {
            restarted: Vec::new(),
            rewarm: (step.number == 3).then_some(2),
        }
    }
}

#[test]
fn a_regulator_can_have_the_learning_rate_rise_again() {
    let device = Device::flex().autodiff();
    let stepper = grouped(&peft_adapter::Full {}, "", &device);
    let mut stepper = stepper.regulated(Some(Box::new(Rewarming)));
    let examples = examples();
    let rows: Vec<&Example> = examples.iter().collect();
    let mut step = || {
        let batch = collate(&rows, &stepper.model().host, &device);
        stepper.step(vec![batch]);
        stepper.rate()
    };
    let rates: Vec<f64> = (0..6).map(|_| step()).collect();
    assert_eq!(rates, [0.01, 0.01, 0.01, 0.0, 0.005, 0.01]);
}
