//! What `config.json` says of packed weights.

use peft_core::Proj;
use serde_json::{Value, json};

use crate::packed_linear::{Coding, PackedLinear, Scales};

/// The `quantization_config` of a model whose linear layers are all packed as this one, as
/// `transformers` writes it; none where the layer is not packed.
///
/// `dense` names the linear layers that stay as they are: `transformers` would otherwise look for
/// packed weights there too.
pub fn quantization_config(layer: &Proj, dense: &[String]) -> Option<Value> {
    let layer = layer.downcast_ref::<PackedLinear>()?;
    let (four_bit, book) = match layer.coding() {
        Coding::FourBit(book) => (true, book.name),
        // The default of the key, which nothing reads then.
        Coding::Int8 => (false, "fp4"),
    };
    let double_quant = matches!(layer.scales, Scales::Quantised(_));
    Some(json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": four_bit,
        "load_in_8bit": !four_bit,
        "_load_in_4bit": four_bit,
        "_load_in_8bit": !four_bit,
        "bnb_4bit_quant_type": book,
        "bnb_4bit_use_double_quant": double_quant,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": dense,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
    }))
}
