//! Pretrained transformers from Hugging Face folders, with seams for methods they know nothing of.

pub mod batch;
mod bert;
mod bert_config;
mod builder;
mod cache;
mod checkpoint;
mod error;
mod generate;
mod gpt2;
mod model;
mod norm;

pub use batch::{Batch, Positions, Side};
pub use bert::Bert;
pub use bert_config::{BertConfig, Family};
pub use cache::Cache;
pub use error::ModelError;
pub use generate::{Choice, Continuation, End, Generation, generate, generate_watched};
pub use gpt2::{Gpt2, Gpt2Config};
pub use model::{Loaded, Model, load, load_with, logits, save};
