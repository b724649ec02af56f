//! Virtual tokens in front of the text: positions, masks, losses and the cache.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use models::{
    Batch, Choice, Generation, Gpt2Config, LlamaConfig, Model, Positions, Side, generate,
};
use peft_core::{
    Adapted, Geometry, Init, Lookup, LookupSlot, Method, Pass, Table, adapt, contract,
};

/// A prompt of three tokens, without a method around it.
#[derive(Debug)]
struct ThreeTokens;

#[derive(Module, Debug)]
struct Prompt {
    rows: Param<Tensor<2>>,
}

impl Method for ThreeTokens {
    fn lookup(&self, table: &Table, init: &mut Init) -> Option<LookupSlot> {
        let rows = Param::from_tensor(init.normal([3, table.width], 1.0));
        Some(LookupSlot::new(Prompt { rows }))
    }
    fn position_offset(&self) -> usize {
        3
    }
    fn parameters(&self, geometry: &Geometry) -> usize {
        3 * geometry.width
    }
}

impl Lookup for Prompt {
    fn forward(&self, _ids: Tensor<2, Int>, rows: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        rows
    }
    fn prompt(&self, _pass: &Pass<'_>) -> Option<Tensor<2>> {
        Some(self.rows.val())
    }
}

fn gpt2() -> Adapted<Model> {
    let mut init = Init::new(3, &Device::flex());
    let config = Gpt2Config::new(64, 20, 32, 2, 2);
    let host = Model::random_gpt2(config, &mut init).unwrap();
    adapt(host, &ThreeTokens, None, &mut init).unwrap()
}

fn llama() -> Adapted<Model> {
    let mut init = Init::new(3, &Device::flex());
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40,
        "max_position_embeddings": 20, "tie_word_embeddings": true, "initializer_range": 0.3
    });
    let config = LlamaConfig::from_json(&config, "test".as_ref()).unwrap();
    let host = Model::random_llama(config, &mut init).unwrap();
    adapt(host, &ThreeTokens, None, &mut init).unwrap()
}

fn logits(model: &Adapted<Model>, rows: &[&[u32]]) -> Tensor<3> {
    let batch = Batch::new(rows, 0, Side::Right, Positions::FromLeft, &Device::flex());
    models::logits(model, &batch)
}

fn last_choice(model: &Adapted<Model>, text: &[u32]) -> u32 {
    let logits = logits(model, &[text]);
    let [_, length, _] = logits.dims();
    let best: i64 = logits.narrow(1, length - 1, 1).argmax(2).into_scalar();
    best as u32
}

#[test]
fn logits_behind_virtual_tokens_come_first_and_padding_changes_none() {
    for model in [gpt2(), llama()] {
        let both = logits(&model, &[&[5, 6, 7, 8], &[9, 4]]);
        assert_eq!(both.dims(), [2, 3 + 4, 64]);
        let alone = logits(&model, &[&[9, 4]]);
        let padded = both.narrow(0, 1, 1).narrow(1, 0, 5).into_data();
        assert!(contract::relative_distance(&padded, &alone.into_data()) < 1e-5);
    }
}

#[test]
fn generation_with_a_cache_sees_virtual_tokens_once() {
    for model in [gpt2(), llama()] {
        let prompts: [&[u32]; 2] = [&[1, 2, 3, 9], &[3]];
        let generation = Generation {
            task: 0,
            max_new_tokens: 5,
            eos: Vec::new(),
            choice: Choice::Greedy,
        };
        let texts = generate(&model, &prompts, &generation, &Device::flex());
        for (prompt, text) in prompts.iter().zip(texts) {
            let mut whole = prompt.to_vec();
            for token in text {
                assert_eq!(token, last_choice(&model, &whole), "after {whole:?}");
                whole.push(token);
            }
        }
    }
}

#[test]
fn the_loss_counts_places_of_the_text() {
    for model in [gpt2(), llama()] {
        let text: [u32; 4] = [5, 6, 7, 8];
        let batch = Batch::new(
            &[&text],
            0,
            Side::Right,
            Positions::FromLeft,
            &Device::flex(),
        );
        let ints = |values: Vec<i64>| {
            let shape = [values.len()];
            Tensor::<1, Int>::from_data(TensorData::new(values, shape), &Device::flex())
        };
        let loss = model
            .host
            .completion_loss(&batch, ints(vec![2]), ints(vec![8]), &model.pass());
        let logits = logits(&model, &[&text])
            .narrow(1, 3 + 2, 1)
            .reshape([1, 64]);
        let expected = burn::tensor::activation::log_softmax(logits, 1)
            .narrow(1, 8, 1)
            .neg();
        let (loss, expected): (f32, f32) = (loss.into_scalar(), expected.into_scalar());
        assert!((loss - expected).abs() < 1e-5, "{loss} against {expected}");
    }
}
