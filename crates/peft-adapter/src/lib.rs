//! Bottleneck adapters and what they are compared with. One paper, one file.

pub mod adapter;
pub mod bitfit;
pub mod bottleneck;
pub mod compacter;
pub mod compacter_plus;
pub mod full;
pub mod head_only;
pub mod houlsby;
mod hub;
pub mod invertible;
pub mod ln_tuning;
pub mod p_tuning;
pub mod parallel;
mod peft;
pub mod pfeiffer;
pub mod phm;
pub mod phm_adapter;
pub mod prefix;
pub mod prompt_tuning;
pub mod top_layers;

pub use bitfit::BitFit;
pub use compacter::Compacter;
pub use compacter_plus::CompacterPlus;
pub use full::Full;
pub use head_only::HeadOnly;
pub use houlsby::Houlsby;
pub use invertible::InvAdapter;
pub use ln_tuning::LnTuning;
pub use p_tuning::PTuning;
pub use parallel::Parallel;
pub use pfeiffer::Pfeiffer;
pub use prefix::Prefix;
pub use prompt_tuning::PromptTuning;
pub use top_layers::TopLayers;
