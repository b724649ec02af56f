//! What a method costs in a model: parameters and bytes, as it is trained.

use std::borrow::Cow;
use std::collections::HashSet;

use models::Model;
use peft_core::{Adapted, Geometry, Host, state};
use report::record::Budget;

use crate::layer_drop::{AdapterDrop, as_evaluated};
use crate::study::TrainConfig;
use crate::train::trained_size;

/// The model as it is trained: without what is left out in every pass.
pub fn as_trained<'a>(model: &'a Adapted<Model>, train: &TrainConfig) -> Cow<'a, Adapted<Model>> {
    match train.adapter_drop {
        Some(AdapterDrop::Specialized { .. }) => as_evaluated(model, train),
        Some(AdapterDrop::Robust { .. }) | None => Cow::Borrowed(model),
    }
}

/// Bytes of parameters that are left out in every pass: nothing trains them.
pub fn left_out(model: &Adapted<Model>, train: &TrainConfig) -> u64 {
    trained_size(model).1 - trained_size(&*as_trained(model, train)).1
}

/// Parameters and bytes of an adapted model, given the shape of its base.
pub fn budget(model: &Adapted<Model>, base: &Geometry) -> Budget {
    let (trainable, adapter_bytes) = trained_size(model);
    let of_the_base: HashSet<_> = model.host.geometry().params.iter().map(|p| p.id).collect();
    let rows = state::parameters(model);
    // What is neither new nor unfrozen, plus what was unfrozen in place.
    let kept = rows
        .iter()
        .filter(|row| !row.trainable || of_the_base.contains(&row.id));
    let head = base.task_head_parameters();
    Budget {
        base: (base.base_parameters() - head) as u64,
        trainable,
        head: head as u64,
        base_bytes: kept.map(|row| row.bytes as u64).sum(),
        adapter_bytes,
    }
}

/// Says which settings leave out of layers what the method put there, where it put nothing into any.
pub fn without_effect(model: &Adapted<Model>, train: &TrainConfig) -> Vec<String> {
    let layers = 0..model.host.geometry().layers;
    let bare = model.without_layers(&layers.collect());
    if state::parameters(&bare).len() != state::parameters(model).len() {
        return Vec::new();
    }
    let settings = [
        ("adapter_drop", train.adapter_drop.is_some()),
        ("stochastic_depth", train.stochastic_depth.is_some()),
        ("adapter_dropout", train.adapter_dropout.is_some()),
    ];
    let set = settings.into_iter().filter(|(_, is_set)| *is_set);
    set.map(|(key, _)| {
        format!("`train.{key}` is without effect on a method that puts nothing into the layers")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trainee;
    use peft_core::Method;

    fn model(method: &dyn Method) -> Adapted<Model> {
        trainee(crate::testing::gpt2, method).0.model
    }

    fn dropped(adapter_drop: AdapterDrop) -> TrainConfig {
        TrainConfig {
            adapter_drop: Some(adapter_drop),
            ..TrainConfig::default()
        }
    }

    #[test]
    fn layers_that_are_always_left_out_cost_nothing_and_others_do() {
        let model = model(&peft_lora::Lora::default());
        let (all, bytes) = trained_size(&model);
        let base = model.host.geometry();
        let specialized = dropped(AdapterDrop::Specialized { layers: 1 });
        let budget = budget(&as_trained(&model, &specialized), &base);
        // Of three layers alike.
        assert_eq!(budget.trainable, all / 3 * 2);
        assert_eq!(left_out(&model, &specialized), bytes / 3);
        let robust = dropped(AdapterDrop::Robust {
            layers: 1,
            evaluate: 1,
        });
        assert_eq!(left_out(&model, &robust), 0);
    }

    #[test]
    fn leaving_layers_out_is_said_to_do_nothing_where_a_method_has_nothing_in_them() {
        let both = TrainConfig {
            stochastic_depth: Some(0.1),
            ..dropped(AdapterDrop::Specialized { layers: 1 })
        };
        let outside: [&dyn Method; 3] = [
            &peft_adapter::Full {},
            &peft_adapter::BitFit::default(),
            &peft_adapter::PromptTuning::default(),
        ];
        for method in outside {
            let said = without_effect(&model(method), &both);
            assert_eq!(said.len(), 2, "{method:?}");
            assert!(said[0].contains("`train.adapter_drop`"), "{said:?}");
        }
        let inside: [&dyn Method; 3] = [
            &peft_lora::Lora::default(),
            &peft_adapter::Houlsby::default(),
            &peft_adapter::Prefix::default(),
        ];
        for method in inside {
            assert!(without_effect(&model(method), &both).is_empty());
        }
        let plain = TrainConfig::default();
        assert!(without_effect(&model(&peft_adapter::Full {}), &plain).is_empty());
    }
}
