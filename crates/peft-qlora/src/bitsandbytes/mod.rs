//! Packed weights in checkpoints, as bitsandbytes names them and `transformers` loads them.
//!
//! | tensor | 4 bits | 8 bits |
//! |---|---|---|
//! | `weight` | u8 `[ceil(out * in / 2), 1]` | i8 `[out, in]` |
//! | `weight.absmax` | f32 `[blocks]`, u8 with double quantisation | |
//! | `weight.quant_map` | f32 `[16]`, the values of the codes | |
//! | `weight.nested_absmax` | f32 `[ceil(blocks / 256)]`, with double quantisation | |
//! | `weight.nested_quant_map` | f32 `[256]`, with double quantisation | |
//! | `weight.quant_state.bitsandbytes__nf4`, `__fp4` | u8, the bytes of a JSON object | |
//! | `SCB` | | f32 `[out]`, the largest magnitude of each row |
//! | `weight_format` | | u8, 0: row by row |

mod config;
mod parts;
mod read;
mod state;
#[cfg(test)]
mod tests;
mod write;

pub use config::quantization_config;
pub use read::BitsAndBytes;
pub use write::tensors;
