use burn::tensor::Device;
use models::Gpt2Config;
use peft_core::contract::perturbed;
use peft_core::{Host, Init, adapt, state};

use super::*;
use crate::batching::{TrainBatch, collate};
use crate::data::{Example, Target};
use crate::groups::Groups;
use crate::schedule::{Decay, Schedule};
use crate::stepper::Stepper;
use crate::trainee::Trainee;

fn config(adapter_drop: Option<AdapterDrop>, stochastic_depth: Option<f64>) -> TrainConfig {
    TrainConfig {
        adapter_drop,
        stochastic_depth,
        ..TrainConfig::default()
    }
}

fn draws(config: &TrainConfig, seed: u64, count: usize) -> Vec<BTreeSet<usize>> {
    let mut drop = LayerDrop::new(config, 4, seed);
    (0..count).map(|_| drop.draw().layers).collect()
}

#[test]
fn without_settings_every_layer_takes_part() {
    let drawn = draws(&config(None, None), 1, 10);
    assert!(drawn.iter().all(BTreeSet::is_empty));
}

#[test]
fn each_layer_is_left_out_as_often_as_asked_for_and_on_its_own() {
    let config = config(None, Some(0.25));
    let drawn = draws(&config, 1, 8000);
    for layer in 0..4 {
        let share = drawn.iter().filter(|d| d.contains(&layer)).count() as f64 / 8000.0;
        assert!((share - 0.25).abs() < 0.02, "layer {layer}: {share}");
    }
    let both = drawn.iter().filter(|d| d.contains(&0) && d.contains(&1));
    let both = both.count() as f64 / 8000.0;
    assert!((both - 0.0625).abs() < 0.015, "{both}");
    assert_eq!(draws(&config, 1, 50), draws(&config, 1, 50));
    assert_ne!(draws(&config, 1, 50), draws(&config, 2, 50));
}

#[test]
fn adapter_drop_takes_the_lowest_layers_a_fixed_or_a_random_number() {
    let fixed = Some(AdapterDrop::Specialized { layers: 2 });
    let drawn = draws(&config(fixed, None), 1, 5);
    assert!(drawn.iter().all(|d| *d == BTreeSet::from([0, 1])));

    let robust = Some(AdapterDrop::Robust {
        layers: 3,
        evaluate: 1,
    });
    let drawn = draws(&config(robust, None), 1, 8000);
    assert!(drawn.iter().all(|d| *d == (0..d.len()).collect()));
    for count in 0..=3 {
        let share = drawn.iter().filter(|d| d.len() == count).count() as f64 / 8000.0;
        assert!((share - 0.25).abs() < 0.02, "{count} layers: {share}");
    }
}

fn model() -> Adapted<Model> {
    let mut init = Init::new(0, &Device::flex().autodiff());
    let base = Model::random_gpt2(Gpt2Config::new(64, 16, 32, 2, 2), &mut init).unwrap();
    let lora = serde_json::json!({"rank": 2, "targets": "all-linear"});
    let lora: peft_lora::Lora = serde_json::from_value(lora).unwrap();
    perturbed(adapt(base, &lora, None, &mut init).unwrap(), 0.2)
}

fn batch(model: &Adapted<Model>, left_out: &[usize]) -> TrainBatch {
    let example = Example {
        task: 0,
        ids: (0..8).map(|i| (i * 7) % 64).collect(),
        target: Target::Completion(1),
        input: String::new(),
        expected: String::new(),
    };
    TrainBatch {
        drops: Drops {
            layers: left_out.iter().copied().collect(),
            dropout: 0.0,
        },
        ..collate(&[&example], &model.host, &Device::flex().autodiff())
    }
}

/// The model with LoRA's second matrix zero in a layer: there it adds nothing.
fn silenced(model: Adapted<Model>, layer: usize) -> Adapted<Model> {
    let mut tensors = state::trained_tensors(&model);
    let mut silenced = 0;
    for (name, data) in &mut tensors {
        if name.contains(&format!(".h.{layer}.")) && name.ends_with(".b") {
            *data = burn::tensor::TensorData::zeros::<f32, _>(data.shape().clone());
            silenced += 1;
        }
    }
    assert_eq!(silenced, 4, "of the layer's linear layers");
    state::restore(model, tensors, "silenced").unwrap()
}

#[test]
fn a_layer_left_out_computes_what_it_does_without_the_method_and_gets_no_gradient() {
    let model = model();
    let trainee = Trainee {
        model: model.clone(),
    };
    let by_hand = Trainee {
        model: silenced(model, 0),
    };
    let loss = trainee.loss(&batch(&trainee.model, &[0]));
    let expected = by_hand.loss(&batch(&trainee.model, &[]));
    let values = [&loss, &expected].map(|loss| loss.clone().into_scalar::<f32>());
    assert!((values[0] - values[1]).abs() < 1e-6, "{values:?}");
    let with_all: f32 = trainee.loss(&batch(&trainee.model, &[])).into_scalar();
    assert!((values[0] - with_all).abs() > 1e-4, "it was not left out");

    let slopes = |trainee: &Trainee, loss: burn::tensor::Tensor<1>| {
        let grads = burn::optim::GradientsParams::from_grads(loss.backward(), trainee);
        state::parameters(&trainee.model)
            .into_iter()
            .filter(|row| row.trainable)
            .map(|row| (row.name, grads.get::<2>(row.id).map(|g| g.into_data())))
            .collect::<Vec<_>>()
    };
    let (found, expected) = (slopes(&trainee, loss), slopes(&by_hand, expected));
    assert_eq!(found.len(), 16);
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        if name.contains(".h.0.") {
            assert!(found.is_none(), "{name}");
        } else {
            let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
            let distance = peft_core::contract::relative_distance(found, expected);
            assert!(distance < 1e-5, "{name}: {distance}");
        }
    }
}

#[test]
fn a_step_that_leaves_out_every_layer_changes_nothing() {
    let model = model();
    let before = state::trained_tensors(&model);
    let all = batch(&model, &[0, 1]);
    let schedule = Schedule::new(Decay::Constant, 1e-1, 0, 1);
    let mut stepper = Stepper::new(model, Groups::one(0.1), schedule, 1.0);
    assert!(stepper.step(vec![all]).is_finite());
    assert_eq!(state::trained_tensors(stepper.model()), before);
}

#[test]
fn scores_are_those_without_the_layers_that_evaluation_drops() {
    let model = model();
    let lora_in = |adapted: &Adapted<Model>| {
        let rows = state::parameters(adapted);
        let lora = rows.iter().filter(|row| row.trainable);
        lora.filter(|row| row.name.contains(".h.0.")).count()
    };
    let seen = |drop| lora_in(&as_evaluated(&model, &config(drop, None)));
    assert_eq!(seen(None), 8);
    assert_eq!(seen(Some(AdapterDrop::Specialized { layers: 1 })), 0);
    let robust = |evaluate| AdapterDrop::Robust {
        layers: 1,
        evaluate,
    };
    assert_eq!(seen(Some(robust(0))), 8);
    assert_eq!(seen(Some(robust(1))), 0);
    assert_eq!(model.host.geometry().layers, 2);
}

#[test]
fn impossible_settings_are_named() {
    let wrong = |drop, depth| check(&config(drop, depth)).unwrap_err();
    let dropout = TrainConfig {
        adapter_dropout: Some(-0.1),
        ..TrainConfig::default()
    };
    assert!(
        check(&dropout)
            .unwrap_err()
            .contains("`train.adapter_dropout` is -0.1")
    );
    let error = wrong(None, Some(1.0));
    assert!(error.contains("`train.stochastic_depth` is 1"), "{error}");
    assert!(check(&config(None, Some(0.5))).is_ok());
    let none = AdapterDrop::Specialized { layers: 0 };
    assert!(wrong(Some(none), None).contains("`train.adapter_drop.layers`"));
    let all = config(Some(AdapterDrop::Specialized { layers: 4 }), None);
    assert!(check_on(&all, 5).is_ok());
    let error = check_on(&all, 4).unwrap_err();
    assert!(error.contains("the model's 4 layers"), "{error}");
    let evaluated = AdapterDrop::Robust {
        layers: 1,
        evaluate: 9,
    };
    let error = check_on(&config(Some(evaluated), None), 4).unwrap_err();
    assert!(error.contains("`train.adapter_drop.evaluate`"), "{error}");
}

/// An example of every method that adds something in the layers, put into a model of a family.
fn dropped_losses(build: fn(&mut Init) -> Model) -> Vec<(&'static str, [f32; 3])> {
    let of = |(kind, method): (_, std::sync::Arc<dyn peft_core::Method>)| {
        let (trainee, _) = crate::testing::trainee(build, &*method);
        let examples = crate::testing::examples(&trainee.model.host);
        let rows: Vec<&Example> = examples.iter().collect();
        let device = Device::flex().autodiff();
        let mut batch = collate(&rows, &trainee.model.host, &device);
        let loss = |dropout, batch: &mut TrainBatch| {
            batch.drops.dropout = dropout;
            trainee.loss(batch).into_scalar::<f32>()
        };
        (
            kind,
            [0.0, 1e-9, 0.5].map(|dropout| loss(dropout, &mut batch)),
        )
    };
    crate::testing::methods(build).into_iter().map(of).collect()
}

#[test]
fn dropout_acts_on_what_any_method_adds_in_the_layers() {
    // These change parameters of the base, the embedded text, or its ends.
    let elsewhere = [
        "full",
        "head",
        "bitfit",
        "ln_tuning",
        "top_layers",
        "prompt_tuning",
        "p_tuning",
    ];
    for (kind, [without, next_to_none, half]) in dropped_losses(crate::testing::gpt2) {
        assert!(
            (without - next_to_none).abs() < 1e-4,
            "{kind}: {without} {next_to_none}"
        );
        let acts = (without - half).abs() > 1e-6;
        assert_eq!(acts, !elsewhere.contains(&kind), "{kind}: {without} {half}");
    }
}
