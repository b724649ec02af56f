//! The number of a row's task reaches the layers, in training and in generation.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use models::{Batch, Choice, Generation, Gpt2Config, Model, Positions, Side, generate, logits};
use peft_core::{Adapted, Geometry, Init, Method, Pass, Role, Sublayer, Tap, TapSlot, adapt};

/// Adds a vector of the row's task to a sublayer.
#[derive(Module, Debug)]
struct OfTask {
    /// `[tasks, d]`
    vectors: Tensor<2>,
}

impl Tap for OfTask {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let [rows, _, d] = sublayer.output.dims();
        let device = sublayer.output.device();
        let tasks = pass.text().tasks;
        let tasks = tasks.unwrap_or_else(|| Tensor::<1, Int>::zeros([rows], &device));
        let vectors = self.vectors.clone().select(0, tasks);
        sublayer.output + vectors.reshape([rows, 1, d])
    }
}

#[derive(Debug)]
struct ByTask;

impl Method for ByTask {
    fn tap(&self, _layer: usize, role: Role, width: usize, init: &mut Init) -> Option<TapSlot> {
        let vectors = init.normal([2, width], 1.0);
        (role == Role::AfterMlp).then(|| TapSlot::new(OfTask { vectors }))
    }
    fn parameters(&self, _geometry: &Geometry) -> usize {
        0
    }
}

fn model() -> Adapted<Model> {
    let mut init = Init::new(0, &Device::flex());
    let base = Model::random_gpt2(Gpt2Config::new(31, 24, 16, 2, 2), &mut init).unwrap();
    adapt(base, &ByTask, None, &mut init).unwrap()
}

fn batch(rows: &[&[u32]], tasks: &[usize]) -> Batch {
    let device = Device::flex();
    Batch::new(rows, 0, Side::Right, Positions::FromLeft, &device).of_tasks(tasks)
}

fn floats(tensor: Tensor<3>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

#[test]
fn rows_of_several_tasks_in_a_batch_are_computed_as_each_alone() {
    let model = model();
    let row: &[u32] = &[3, 1, 4, 1];
    let both = floats(logits(&model, &batch(&[row, row], &[1, 0])));
    let alone = |task: usize| floats(logits(&model, &batch(&[row], &[task])));
    let apart = [alone(1), alone(0)].concat();
    assert!(both.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-5));
    assert_ne!(alone(0), alone(1));
    assert!(
        batch(&[row], &[0]).tasks.is_none(),
        "one task needs no number"
    );
}

#[test]
fn texts_are_generated_for_their_task() {
    let model = model();
    let prompts: [&[u32]; 2] = [&[3, 1, 4, 1, 5], &[9, 2]];
    for task in [0, 1] {
        let generation = Generation {
            max_new_tokens: 6,
            eos: Vec::new(),
            choice: Choice::Greedy,
            task,
        };
        let texts = generate(&model, &prompts, &generation, &Device::flex());
        for (prompt, text) in prompts.iter().zip(texts) {
            let mut all = prompt.to_vec();
            for _ in 0..6 {
                let row = floats(logits(&model, &batch(&[&all], &[task])));
                let last = &row[row.len() - 31..];
                let best = (0..31)
                    .max_by(|a, b| last[*a].total_cmp(&last[*b]))
                    .unwrap();
                all.push(best as u32);
            }
            assert_eq!(text, all[prompt.len()..], "task {task}");
        }
    }
    let texts = |task| {
        let generation = Generation {
            max_new_tokens: 6,
            eos: Vec::new(),
            choice: Choice::Greedy,
            task,
        };
        generate(&model, &prompts, &generation, &Device::flex())
    };
    assert_ne!(texts(0), texts(1));
}
