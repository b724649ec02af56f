//! The LoRA family: low-rank and related updates of linear layers. One paper, one file.

pub mod lora;
pub mod vera;

pub use lora::Lora;
pub use vera::Vera;
