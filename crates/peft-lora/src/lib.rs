//! The LoRA family: low-rank and related updates of linear layers. One paper, one file.

pub mod adalora;
pub mod boft;
mod cayley;
pub mod dora;
mod family;
pub mod fourierft;
pub mod hira;
pub mod ia3;
pub mod loha;
pub mod lokr;
pub mod lora;
pub mod lora_fa;
pub mod lora_plus;
pub mod miss;
pub mod oft;
pub mod relora;
pub mod vera;

pub use adalora::AdaLora;
pub use boft::Boft;
pub use dora::Dora;
pub use fourierft::FourierFt;
pub use hira::Hira;
pub use ia3::Ia3;
pub use loha::Loha;
pub use lokr::Lokr;
pub use lora::Lora;
pub use lora_fa::LoraFa;
pub use lora_plus::LoraPlus;
pub use miss::Miss;
pub use oft::Oft;
pub use relora::ReLora;
pub use vera::Vera;
