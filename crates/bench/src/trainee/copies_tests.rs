//! Methods side by side in one model: each computes, learns and writes what it does alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Device;
use models::{Batch, Choice, Generation, Side, generate};
use peft_core::compose::is_of_a_part;
use peft_core::state::{self, Tensors};
use peft_core::{Host, Init, Method};
use serde_json::{Value, json};

use super::*;
use crate::batching::collate;
use crate::checkpointing;
use crate::data::Example;
use crate::error::BenchError;
use crate::registry::Registry;
use crate::testing::{bert, configs, examples, gpt2, llama, trainee, whole};

type Build = fn(&mut Init) -> Model;

fn try_block(parts: &[Value]) -> Result<Arc<dyn Method>, BenchError> {
    Registry::builtin().parse("parallel_block", &json!({ "parts": parts }))
}

fn block(parts: &[Value]) -> Arc<dyn Method> {
    try_block(parts).unwrap_or_else(|error| panic!("{parts:?}: {error}"))
}

/// The kinds of all methods that may be a part on this model, with an example.
fn kinds(build: Build) -> Vec<(&'static str, Value)> {
    let geometry = build(&mut Init::new(5, &Device::flex())).geometry();
    let as_part = |(kind, mut config): (&'static str, Value)| {
        config["kind"] = kind.into();
        (kind, config)
    };
    let mut parts: Vec<_> = configs().into_iter().map(as_part).collect();
    let fits = |part: &Value| {
        // `mam` has a key that in a part is the folder of a trained adapter; a part that packs the
        // base packs that of the others.
        let block = try_block(std::slice::from_ref(part));
        block.is_ok_and(|block| block.check(&geometry).is_ok() && block.storage().is_none())
    };
    parts.retain(|(_, part)| fits(part));
    parts
}

fn batch(trainee: &Trainee, device: &Device) -> TrainBatch {
    let examples = examples(&trainee.model.host);
    let rows: Vec<&Example> = examples.iter().collect();
    collate(&rows, &trainee.model.host, device)
}

/// What the parameter of a block is called in the model of one part alone; none where it belongs to
/// another part.
fn alone_called(name: &str, index: usize) -> Option<String> {
    let Some((module, inside)) = name.split_once(".parts.") else {
        return Some(name.into());
    };
    let (part, inside) = inside.split_once('.')?;
    (part == index.to_string()).then(|| format!("{module}.{inside}"))
}

/// What the parts have put into the model, drawn at random and kept or trained, and a task head.
fn values_of(block: &Trainee) -> Tensors {
    state::tensors_where(&block.model, |row| {
        row.trainable || row.buffer || is_of_a_part(&row.name)
    })
}

/// The model of one part alone, with the values it has in the block.
fn alone(build: Build, block: &Trainee, part: &dyn Method, index: usize) -> Trainee {
    let (fresh, _) = trainee(build, part);
    let values = values_of(block).into_iter();
    let own = values.filter_map(|(name, data)| Some((alone_called(&name, index)?, data)));
    let model = state::set(fresh.model, own.collect(), "the block");
    Trainee {
        model: model.unwrap(),
    }
}

/// Every gradient, by the name of its parameter.
fn named(trainee: &Trainee, grads: &GradientsParams) -> BTreeMap<String, Vec<f32>> {
    struct Named<'a>(&'a GradientsParams, Vec<String>, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Named<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.1.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.1.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                let values = grad.into_data().try_to_vec().unwrap();
                self.2.insert(self.1.join("."), values);
            }
        }
    }
    let mut named = Named(grads, Vec::new(), BTreeMap::new());
    trainee.model.visit(&mut named);
    named.2
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_to_vec().unwrap()
}

fn largest<'a>(values: impl IntoIterator<Item = &'a f32>) -> f32 {
    values.into_iter().fold(0.0, |max, v| v.abs().max(max))
}

/// Fails where a value is off by more than a hundred-thousandth of `size`.
#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], size: f32, about: &str) {
    assert_eq!(found.len(), expected.len(), "{about}");
    let off: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    let worst = largest(&off);
    assert!(worst <= 1e-5 * size, "{about}: {worst:e} off, of {size}");
}

/// Another method beside a bottleneck adapter: loss, gradients and logits of both.
fn check_beside(build: Build, kind: &str, part: Value) {
    let method = block(&[json!({"kind": "pfeiffer", "bottleneck": 3}), part]);
    let (both, device) = trainee(build, &*method);
    let batch = batch(&both, &device);
    let (loss, grads) = whole(&both, &batch);
    let found = named(&both, &grads);
    let (valid, texts) = (
        both.model.valid(),
        self::batch(&both, &Device::flex()).batch,
    );
    let copies = valid
        .pass()
        .each_copy(models::logits_of_copies(&valid, &texts));
    let (mut sum, mut expected) = (0.0, BTreeMap::<String, Vec<f32>>::new());
    for (index, (part, copy)) in method.parts().iter().zip(copies).enumerate() {
        let alone = alone(build, &both, part.method(), index);
        let logits = floats(models::logits(&alone.model.valid(), &texts));
        assert_close(&floats(copy), &logits, largest(&logits), kind);
        let (loss, grads) = whole(&alone, &batch);
        sum += loss;
        let own = named(&alone, &grads);
        for name in found.keys() {
            let grad = alone_called(name, index).and_then(|name| own.get(&name));
            let Some(grad) = grad else { continue };
            // A task head is one for all, and learns from all.
            let so_far = expected.entry(name.clone());
            let so_far = so_far.or_insert_with(|| vec![0.0; grad.len()]);
            so_far.iter_mut().zip(grad).for_each(|(a, b)| *a += b);
        }
    }
    assert!((loss - sum).abs() < 1e-5 * sum, "{kind}: {loss}, not {sum}");
    let names = |map: &BTreeMap<String, Vec<f32>>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "{kind}");
    let all = largest(expected.values().flatten());
    for (name, grad) in &found {
        // Of a gradient far below the others no more is asked than of theirs.
        let size = largest(&expected[name]).max(0.05 * all);
        assert_close(grad, &expected[name], size, &format!("{kind}: `{name}`"));
    }
}

fn check_every_method(build: Build) {
    let kinds = kinds(build);
    assert!(kinds.len() > 20, "only {} kinds", kinds.len());
    for (kind, part) in kinds {
        check_beside(build, kind, part);
    }
}

#[test]
fn every_part_computes_and_learns_on_gpt2_what_it_does_alone() {
    check_every_method(gpt2);
}

#[test]
fn every_part_computes_and_learns_on_bert_what_it_does_alone() {
    check_every_method(bert);
}

#[test]
fn every_part_computes_and_learns_on_llama_what_it_does_alone() {
    check_every_method(llama);
}

#[test]
fn layers_computed_again_see_the_same_copies() {
    // What draws keys and values from other states, beside projections that differ by copy.
    let parts = [
        json!({"kind": "adaption_prompt", "adapter_len": 3, "adapter_layers": 2}),
        json!({"kind": "lora", "rank": 2, "targets": ["key", "value"]}),
        json!({"kind": "hyper_instance"}),
    ];
    let (trainee, device) = trainee(llama, &*block(&parts));
    let batch = batch(&trainee, &device);
    let (found, expected) = (
        checkpointing::step(&trainee, &batch),
        whole(&trainee, &batch),
    );
    crate::testing::assert_same(&trainee, 1e-6, found, expected);
}

const PROMPTS: [&[u32]; 2] = [&[5, 17, 3, 40, 22], &[9, 2]];

fn written(model: &Adapted<Model>) -> Vec<Vec<u32>> {
    let generation = Generation {
        task: 0,
        max_new_tokens: 6,
        eos: Vec::new(),
        choice: Choice::Greedy,
    };
    generate(model, &PROMPTS, &generation, &Device::flex())
}

#[test]
fn equal_parts_write_what_one_of_them_writes_alone() {
    let kinds = kinds(gpt2);
    assert!(kinds.len() > 20, "only {} kinds", kinds.len());
    for (kind, part) in kinds {
        let method = block(&[part.clone(), part]);
        let (both, _) = trainee(gpt2, &*method);
        let values = values_of(&both).into_iter();
        let values = values.filter(|(name, _)| alone_called(name, 0).is_some());
        let equal: Tensors = values
            .flat_map(|(name, data)| {
                let twin = name.replacen(".parts.0.", ".parts.1.", 1);
                [(twin, data.clone()), (name, data)]
            })
            .collect();
        let model = state::set(both.model, equal, "the first part").unwrap();
        let both = Trainee { model };
        let first = alone(gpt2, &both, method.parts()[0].method(), 0);
        let (found, expected) = (written(&both.model.valid()), written(&first.model.valid()));
        assert_eq!(found, expected, "{kind}");
    }
}

#[test]
fn several_parts_write_what_the_mean_of_their_logits_says() {
    let parts = [
        json!({"kind": "pfeiffer", "bottleneck": 3}),
        json!({"kind": "lora", "rank": 2}),
        json!({"kind": "prefix", "num_virtual_tokens": 2}),
    ];
    for build in [gpt2 as Build, llama] {
        let (trainee, _) = trainee(build, &*block(&parts));
        let model = trainee.model.valid();
        for (prompt, new) in PROMPTS.iter().zip(written(&model)) {
            let text = [prompt, &new[..]].concat();
            let rows = [&text[..]];
            let positions = model.host.positions();
            let batch = Batch::new(&rows, 0, Side::Right, positions, &Device::flex());
            let logits = models::logits_of_copies(&model, &batch);
            assert_eq!(logits.dims()[0], 3);
            let mean: Tensor<2> = logits.mean_dim(0).squeeze_dim(0);
            let chosen = floats(mean.argmax(1).float());
            let chosen: Vec<u32> = chosen.into_iter().map(|id| id as u32).collect();
            assert_eq!(chosen[prompt.len() - 1..text.len() - 1], new);
        }
    }
}

#[test]
fn the_loss_of_the_answer_is_that_of_the_mean_of_the_logits() {
    let parts = [
        json!({"kind": "pfeiffer", "bottleneck": 3}),
        json!({"kind": "lora", "rank": 2}),
    ];
    for build in [gpt2 as Build, bert] {
        let (trainee, device) = trainee(build, &*block(&parts));
        let batch = batch(&trainee, &device);
        let found = answer_loss(&trainee.model, &batch).into_scalar::<f32>();
        let logits = models::logits(&trainee.model, &batch.batch);
        let [rows, seq, width] = logits.dims();
        let flat = log_softmax(logits.reshape([rows * seq, width]), 1);
        let (flat, wanted) = match &batch.targets {
            Targets::Tokens { places, next, .. } => (flat.select(0, places.clone()), next.clone()),
            Targets::Classes { outputs, .. } => (flat, outputs.clone()),
        };
        let expected = flat.gather(1, wanted.unsqueeze_dim(1)).mean().neg();
        let expected = expected.into_scalar::<f32>();
        assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        let trained = trainee.loss(&batch).into_scalar::<f32>();
        let mean = trained / 2.0;
        assert!(
            found <= mean + 1e-6,
            "{found} of the mean, {mean} on average"
        );
    }
}
