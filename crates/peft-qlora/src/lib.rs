//! QLoRA: frozen weights in 4 or 8 bits, adapters beside them.
//!
//! [`Nf4`], [`Fp4`] and [`Int8`] are [`Storage`](peft_core::Storage)s that any method can be put
//! over; [`Qlora`] is the preset of the paper, LoRA on every linear layer over NF4 with double
//! quantisation. The bytes are those of bitsandbytes 0.50.2: the same codes, the same scales.

// `NdArray` is deprecated upstream; it stays the second CPU backend here for its users.
#![allow(deprecated)]

pub mod bitsandbytes;
pub mod code_book;
pub mod codec;
mod composed;
pub mod double_quant;
mod flex;
pub mod int8;
pub mod loftq;
mod packed_blocks;
mod packed_linear;
mod packed_op;
pub mod qlora;
pub mod storage;

pub use bitsandbytes::BitsAndBytes;
pub use code_book::CodeBook;
pub use int8::Int8;
pub use loftq::LoftQ;
pub use packed_linear::{Coding, PackedLinear};
pub use qlora::Qlora;
pub use storage::{FourBit, Fp4, Nf4};
