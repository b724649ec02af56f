//! Adversarial training with dropout. A file of its own: all threads of a process draw from the same
//! random numbers.

use bench::adversarial::{Adversarial, Adversary};
use bench::batching::{TrainBatch, collate};
use bench::data::{Example, Target};
use bench::trainee::Trainee;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use models::{Gpt2Config, Model};
use peft_core::contract::perturbed;
use peft_core::{Init, adapt};

const WIDTH: usize = 16;

fn trainee(device: &Device) -> Trainee {
    let lora = peft_lora::Lora {
        dropout: 0.4,
        ..peft_lora::Lora::default()
    };
    let mut init = Init::new(5, device);
    let base = Model::random_gpt2(Gpt2Config::new(31, 16, WIDTH, 2, 2), &mut init).unwrap();
    let model = adapt(base, &lora, None, &mut init).unwrap();
    Trainee {
        model: perturbed(model, 0.1),
    }
}

fn batch(trainee: &Trainee, device: &Device) -> TrainBatch {
    let example = Example {
        task: 0,
        ids: (0..12).map(|i| (5 + i * 7) % 31).collect(),
        target: Target::Completion(2),
        input: String::new(),
        expected: String::new(),
    };
    collate(&[&example], &trainee.model.host, device)
}

fn values(trainee: &Trainee, grads: &GradientsParams) -> Vec<f32> {
    struct Values<'a>(&'a GradientsParams, Vec<f32>);
    impl ModuleVisitor for Values<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
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
fn every_pass_of_a_step_drops_out_the_same_and_the_next_step_something_else() {
    let device = Device::flex().autodiff();
    let trainee = trainee(&device);
    // A change too small to matter: what differs between the passes is the dropout alone.
    let freelb = |steps| Adversarial::Freelb {
        steps,
        step_size: 1e-9,
        epsilon: 1e-9,
        init: Some(0.0),
    };
    let two_steps = |config| {
        device.seed(7);
        let mut adversary = Adversary::new(config, WIDTH, 1);
        [(); 2].map(|()| {
            let (_, grads) = adversary.gradients(&trainee, batch(&trainee, &device));
            values(&trainee, &grads)
        })
    };
    let furthest = |a: &[f32], b: &[f32]| {
        let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        let largest = a.iter().fold(0f32, |most, value| most.max(value.abs()));
        apart.fold(0f32, f32::max) / largest
    };
    let one = two_steps(freelb(1));
    assert!(furthest(&one[0], &one[1]) > 0.1, "dropout acts");
    let three = two_steps(freelb(3));
    assert!(furthest(&one[0], &three[0]) < 1e-4);
    let fgm = two_steps(Adversarial::Fgm { epsilon: 1e-9 });
    let doubled: Vec<f32> = one[0].iter().map(|value| 2.0 * value).collect();
    assert!(furthest(&doubled, &fgm[0]) < 1e-4);
}
