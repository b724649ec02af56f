use super::*;
use burn::tensor::Device;
use models::Gpt2Config;
use peft_core::Init;
use peft_core::compose::Part;

fn model() -> Model {
    let mut init = Init::new(0, &Device::flex());
    Model::random_gpt2(Gpt2Config::new(64, 16, 32, 2, 2), &mut init).unwrap()
}

fn load([rows, length]: [usize; 2]) -> Load {
    Load {
        rows,
        length,
        checkpointing: false,
    }
}

#[test]
fn checkpointing_leaves_a_layer_and_the_inputs_of_the_others() {
    let lora = peft_lora::Lora::default();
    let peak = |load| predict(&model(), &lora, &StorageSpec::F32, load).predicted_peak;
    let checkpointed = Load {
        checkpointing: true,
        ..load([4, 16])
    };
    let (width, inner) = (32, 128);
    let saved = 4 * 64 * (6 * width + 2 * inner - width);
    assert_eq!(peak(load([4, 16])) - peak(checkpointed), saved);
}

#[test]
fn packed_weights_are_predicted_to_take_an_eighth_and_their_scales() {
    let lora = peft_lora::Lora::default();
    let dense = predict(&model(), &lora, &StorageSpec::F32, load([4, 16]));
    let nf4 = StorageSpec::Nf4(peft_qlora::Nf4::new(64, false));
    let packed = predict(&model(), &lora, &nf4, load([4, 16]));
    let in_sites = 2 * 12 * 32 * 32;
    assert_eq!(
        dense.base - packed.base,
        in_sites * 4 - in_sites / 2 - in_sites / 64 * 4
    );
}

#[test]
fn a_tied_head_that_gets_a_copy_of_its_own_is_counted() {
    let memory = predict(
        &model(),
        &peft_adapter::HeadOnly {},
        &StorageSpec::F32,
        load([0, 0]),
    );
    assert_eq!(memory.adapter, 64 * 32 * 4);
    assert_eq!(
        memory.predicted_peak - PROGRAM,
        memory.base + 4 * memory.adapter
    );
}

#[test]
fn full_fine_tuning_counts_the_weights_once_and_three_more_for_training() {
    let memory = predict(
        &model(),
        &peft_adapter::Full {},
        &StorageSpec::F32,
        load([0, 0]),
    );
    assert_eq!(memory.predicted_peak - PROGRAM, 4 * memory.base);
}

#[test]
fn virtual_tokens_are_kept_where_they_stand() {
    let peak = |method: &dyn Method, length| {
        let memory = predict(&model(), method, &StorageSpec::F32, load([3, length]));
        memory.predicted_peak - memory.base - memory.adapter - 3 * memory.gradients
    };
    let prompt = peft_adapter::PromptTuning {
        num_virtual_tokens: 5,
        ..Default::default()
    };
    let lora = peft_lora::Lora::default();
    assert_eq!(peak(&prompt, 8), peak(&lora, 13));
    let prefix = peft_adapter::Prefix {
        num_virtual_tokens: 5,
        ..Default::default()
    };
    // Keys and values of 32 in two layers, for five tokens of three rows.
    assert_eq!(peak(&prefix, 8) - peak(&lora, 8), 4 * 2 * 32 * 2 * 5 * 3);
}

#[test]
fn parts_side_by_side_keep_what_each_alone_keeps() {
    let kept = |method: &dyn Method| {
        let memory = predict(&model(), method, &StorageSpec::F32, load([3, 8]));
        let logits = logits(&model(), 3 * 8);
        memory.predicted_peak - PROGRAM - memory.base - 4 * memory.gradients - logits
    };
    let lora = peft_lora::Lora::default();
    let parts = vec![Part::of(lora.clone()), Part::of(lora.clone())];
    assert_eq!(
        kept(&peft_adapter::ParallelBlock { parts }),
        2 * kept(&lora)
    );
}

#[test]
fn parameters_that_take_no_part_have_neither_gradients_nor_state() {
    let lora = peft_lora::Lora::default();
    let whole = predict(&model(), &lora, &StorageSpec::F32, load([3, 8]));
    let left = without(whole.clone(), 64);
    assert_eq!(whole.predicted_peak - left.predicted_peak, 3 * 64);
    assert_eq!(whole.adapter - left.adapter, 64);
    assert_eq!(whole.optimizer - left.optimizer, 2 * 64);
}

#[test]
fn the_peak_of_this_process_is_known() {
    assert!(peak_rss() > 1 << 20);
}
