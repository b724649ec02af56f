//! Pretrained transformers from Hugging Face folders, with seams for methods they know nothing of.

mod angles;
pub mod batch;
mod bert;
mod bert_config;
mod builder;
mod cache;
mod checkpoint;
mod error;
mod fields;
mod generate;
mod gpt2;
mod llama;
mod llama_config;
mod model;
mod norm;
mod plan;
mod rope;
mod stages;

pub use batch::{Batch, Positions, Side};
pub use bert::Bert;
pub use bert_config::{BertConfig, Family};
pub use cache::Cache;
pub use error::ModelError;
pub use generate::{Choice, Continuation, End, Generation, generate, generate_watched};
pub use gpt2::{Gpt2, Gpt2Config};
pub use llama::Llama;
pub use llama_config::{LlamaConfig, LlamaFamily};
pub use model::{Loaded, Model, load, load_with, logits, logits_of_copies, save};
pub use peft_core::attend::Texts;
pub use rope::{Rope, RopeScaling, Yarn};
pub use stages::{Context, TrainedStages};
