//! How much arithmetic a training step is.

use models::Model;
use peft_core::{BaseParam, Geometry, Host, Method, Part, VirtualTokens, trains_inside};

use crate::speed::Work;

/// Floating-point operations of the matrix products of one training step.
///
/// Counted as the work needs them, whatever an implementation does beside: forward, gradients for
/// the activations of layers in which or below which something trains, and gradients for the
/// weights that train. Left out are element-wise work and what makes virtual tokens, once a step.
pub fn flops(model: &Model, method: &dyn Method, work: Work) -> f64 {
    let geometry = model.geometry();
    let VirtualTokens { body, keys } = method.virtual_tokens();
    let length = (work.seq + body) as f64;
    let copies = method.copies() as f64;
    let tokens = copies * work.batch as f64 * length;
    let in_sites: f64 = geometry
        .sites
        .iter()
        .map(|s| (s.d_in * s.d_out) as f64)
        .sum();
    let unfrozen = geometry.count(|p| method.trains(p));
    // The parameters of virtual tokens are what the text meets, not what it is multiplied by. Of
    // several copies of a text each meets those of one part.
    let added = match body + keys {
        0 => method.parameters(&geometry).saturating_sub(unfrozen) as f64 / copies,
        _ => 0.0,
    };
    let trained = |p: &&BaseParam| method.trains(p);
    let trained_linear: f64 = geometry
        .params
        .iter()
        .filter(trained)
        .filter(|p| p.shape.len() == 2 && p.part == Part::Linear)
        .map(|p| p.numel() as f64)
        .sum();
    // A method that adds anything is taken to add it to every layer, the lowest included.
    let enters_layers = trains_inside(&geometry, method);
    let backward = if enters_layers { 1.0 } else { 0.0 };
    let blocks = 2.0 * tokens * (in_sites * (1.0 + backward) + trained_linear + 3.0 * added);
    // Scores and their product with the values, forward once and backward twice.
    let context = if model.is_causal() { 0.5 } else { 1.0 } * length + keys as f64;
    let width = (geometry.query_width() * geometry.layers) as f64;
    let attention = 4.0 * tokens * context * width * (1.0 + 2.0 * backward);
    blocks + attention + head_flops(model, &geometry, method, work, enters_layers)
}

/// The share of a language model's head.
fn head_flops(
    model: &Model,
    geometry: &Geometry,
    method: &dyn Method,
    work: Work,
    enters_layers: bool,
) -> f64 {
    if !model.is_causal() {
        return 0.0;
    }
    let is_head = |p: &&BaseParam| p.shape.first() == Some(&model.vocab_size());
    let trains = method.unties_head(geometry)
        || geometry
            .params
            .iter()
            .filter(is_head)
            .any(|p| method.trains(p));
    let passes = 1.0 + f64::from(u8::from(enters_layers)) + f64::from(u8::from(trains));
    let places = (method.copies() * work.batch * (work.seq - 1)) as f64;
    2.0 * passes * places * (geometry.width * model.vocab_size()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use models::{Gpt2Config, LlamaConfig};
    use peft_core::Init;
    use peft_core::compose::Part;

    const WORK: Work = Work {
        batch: 2,
        seq: 8,
        steps: 1,
        checkpointing: false,
    };

    #[test]
    fn operations_are_counted_as_the_products_need_them() {
        let mut init = Init::new(0, &Device::flex());
        let model = Model::random_gpt2(Gpt2Config::new(64, 16, 32, 2, 2), &mut init).unwrap();
        let (tokens, sites, head) = (16.0, (2 * 12 * 32 * 32) as f64, (32 * 64) as f64);
        let attention = 12.0 * tokens * 4.0 * 64.0;
        let places = 14.0;
        let frozen = 4.0 * tokens * sites + attention + 4.0 * places * head;
        let lora = peft_lora::Lora::default();
        let added = lora.parameters(&model.geometry()) as f64;
        assert_eq!(flops(&model, &lora, WORK), frozen + 6.0 * tokens * added);
        let full = frozen + 2.0 * tokens * sites + 2.0 * places * head;
        assert_eq!(flops(&model, &peft_adapter::Full {}, WORK), full);
        // The head alone: forward everywhere, backward for its weight only.
        let alone = 2.0 * tokens * sites + attention / 3.0 + 4.0 * places * head;
        assert_eq!(flops(&model, &peft_adapter::HeadOnly {}, WORK), alone);
    }

    /// A small decoder whose four heads are wider together than the model: 48 of 32.
    fn wide_heads() -> Model {
        let config = serde_json::json!({
            "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
            "intermediate_size": 40, "max_position_embeddings": 32, "tie_word_embeddings": true
        });
        let config = LlamaConfig::from_json(&config, "test".as_ref()).unwrap();
        Model::random_llama(config, &mut Init::new(0, &Device::flex())).unwrap()
    }

    #[test]
    fn attention_is_as_wide_as_its_heads_together() {
        let model = wide_heads();
        let (tokens, head) = (16.0, (32 * 64) as f64);
        let sites = (2 * (32 * 48 * 2 + 32 * 24 * 2 + 3 * 32 * 40)) as f64;
        let attention = 4.0 * tokens * 4.0 * (2 * 48) as f64;
        let alone = 2.0 * tokens * sites + attention + 4.0 * 14.0 * head;
        assert_eq!(flops(&model, &peft_adapter::HeadOnly {}, WORK), alone);
    }

    #[test]
    fn parts_side_by_side_are_the_work_of_each_alone() {
        let model = wide_heads();
        let lora = peft_lora::Lora::default();
        let block = peft_adapter::ParallelBlock {
            parts: vec![Part::of(lora.clone()), Part::of(lora.clone())],
        };
        assert_eq!(
            flops(&model, &block, WORK),
            2.0 * flops(&model, &lora, WORK)
        );
    }

    #[test]
    fn virtual_tokens_are_worked_on_where_they_stand() {
        let model = wide_heads();
        let (sites, heads) = ((2 * (32 * 48 * 2 + 32 * 24 * 2 + 3 * 32 * 40)) as f64, 96.0);
        let head = 4.0 * 14.0 * (32 * 64) as f64;
        // Two rows of five more tokens in every layer.
        let prompt = peft_adapter::PromptTuning {
            num_virtual_tokens: 5,
            ..Default::default()
        };
        let longer = 4.0 * 26.0 * sites + 12.0 * 26.0 * 6.5 * heads + head;
        assert_eq!(flops(&model, &prompt, WORK), longer);
        // Five more keys for every token to meet.
        let prefix = peft_adapter::Prefix {
            num_virtual_tokens: 5,
            ..Default::default()
        };
        let wider = 4.0 * 16.0 * sites + 12.0 * 16.0 * 9.0 * heads + head;
        assert_eq!(flops(&model, &prefix, WORK), wider);
    }
}
