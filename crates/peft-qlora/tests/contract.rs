//! Methods keep their contract over packed weights.

// `NdArray` is deprecated upstream; it stays the second CPU backend here for its users.
#![allow(deprecated)]

use burn::tensor::Device;
use peft_core::Storage;
use peft_core::contract::{self, Setting};
use peft_core::toy::Toy;
use peft_lora::Lora;
use peft_qlora::{Fp4, Int8, Nf4};

fn on_each_setting(check: impl Fn(&Setting<'_>)) {
    let storages: [&dyn Storage; 4] = [
        &Nf4::default(),
        &Nf4::new(32, false),
        &Fp4::default(),
        &Int8 {},
    ];
    for storage in storages {
        for device in [Device::flex(), Device::ndarray()] {
            check(&Setting {
                storage: Some(storage),
                ..Setting::dense(device)
            });
        }
    }
}

#[test]
fn lora_over_packed_weights_starts_at_the_packed_base() {
    on_each_setting(contract::identity_at_init::<Lora, Toy>);
}

#[test]
fn lora_over_packed_weights_trains_its_own_parameters_only() {
    on_each_setting(contract::only_declared_parameters_train::<Lora, Toy>);
}

#[test]
fn lora_over_packed_weights_learns() {
    on_each_setting(contract::loss_falls::<Lora, Toy>);
}

#[test]
fn lora_over_packed_weights_is_saved_alone_and_restored() {
    on_each_setting(contract::saved_alone_and_restored::<Lora, Toy>);
}

#[test]
fn lora_over_packed_weights_merges_to_the_decoded_weight_and_the_update() {
    on_each_setting(contract::merge_preserves_the_output::<Lora, Toy>);
}

#[test]
fn the_storage_does_not_change_what_is_counted_as_trained() {
    on_each_setting(contract::count_equals_closed_form::<Lora, Toy>);
}
