//! What the methods of this crate share of HF PEFT's format.

use peft_core::{CoreError, Fields, Geometry};
use serde_json::{Map, Value, json};

/// Refuses `modules_to_save` that name more than the task head.
pub(crate) fn only_the_head_is_saved(
    fields: &mut Fields,
    geometry: &Geometry,
) -> Result<(), CoreError> {
    match fields.modules_to_save(geometry)?.first() {
        None => Ok(()),
        Some(name) => {
            let expected = "the task head alone: this version saves no other module here";
            Err(fields.unsupported("modules_to_save", &json!(name), expected))
        }
    }
}

/// Takes the fields that every method with virtual tokens has; returns their number.
pub(crate) fn virtual_tokens(fields: &mut Fields, geometry: &Geometry) -> Result<usize, CoreError> {
    fields.allow("num_transformer_submodules", &[1.into()])?;
    fields.allow("num_layers", &[geometry.layers.into()])?;
    fields.ignore(&["num_attention_heads", "token_dim"]);
    only_the_head_is_saved(fields, geometry)?;
    fields.require("num_virtual_tokens")
}

/// The fields of virtual tokens in front of the text.
pub(crate) fn prompt_fields(kind: &str, count: usize, geometry: &Geometry) -> Map<String, Value> {
    let fields = json!({
        "peft_type": kind, "num_virtual_tokens": count, "num_layers": geometry.layers,
        "num_attention_heads": geometry.kv_heads, "token_dim": geometry.width,
        "num_transformer_submodules": 1,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => unreachable!("a JSON table"),
    }
}
