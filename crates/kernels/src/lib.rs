//! Training operations that models and fine-tuning methods share.
//!
//! Each operation has a hand-written backward pass that saves no more than it needs and computes
//! no gradient nobody asked for. On the CPU backend `Flex` it also runs as loops over plain slices;
//! elsewhere it is composed of the backend's own operations.

// `NdArray` is deprecated upstream; it stays the second CPU backend here for its users.
#![allow(deprecated)]

mod adamw;
mod attention;
mod buffer;
mod circulant;
mod cross_entropy;
mod dft;
mod embedding;
mod flex;
mod gelu;
mod layer_norm;
mod linear;
mod norm;
pub mod plain;
pub mod product;
mod rms_norm;
mod rotary;
mod silu_gate;
mod simd;
#[cfg(test)]
mod testing;

pub use adamw::{AdamWSpec, Moments, adamw};
pub use attention::{
    AttentionSpec, Texts, attention, attention_packed, attention_qkv, attention_qkv_packed,
};
pub use circulant::circulant;
pub use cross_entropy::{MOST_LOGITS, cross_entropy_head};
pub use dft::real_dft2;
pub use embedding::embedding;
pub use gelu::{gelu, gelu_tanh};
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_onto};
pub use norm::{scaled, square_sum};
pub use rms_norm::rms_norm;
pub use rotary::rotary;
pub use silu_gate::silu_gate;
