//! Bottleneck adapters and what they are compared with. One paper, one file.

pub mod adapter;
pub mod bottleneck;
pub mod full;
pub mod head_only;
pub mod houlsby;
mod hub;
pub mod parallel;
pub mod pfeiffer;
pub mod prefix;

pub use full::Full;
pub use head_only::HeadOnly;
pub use houlsby::Houlsby;
pub use parallel::Parallel;
pub use pfeiffer::Pfeiffer;
pub use prefix::Prefix;
