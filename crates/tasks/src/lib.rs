//! Data in, scores out: everything around a model that is no model.
//!
//! - [`read`]: JSON, CSV, TSV and Parquet files to rows, with the line and the file's hash.
//! - [`layout`]: rows of known layouts: Alpaca, ShareGPT, chat messages, prompt and completion.
//! - [`chat_template`]: chats to text, by the template that comes with a model.
//! - [`lm`] and [`classify`]: rows to token ids, by templates over their fields.
//! - [`split`]: train, dev and test; subsampling; inputs that stand in two of them.
//! - [`metric`]: answers to scores, each checked against a published implementation.
//! - [`scenario`]: a generated task with its own pretraining corpus, for a quick start.
//! - [`tokenizer`]: trains the tokenizer of such a scenario.
//!
//! The crate knows nothing of tensors: batches, training and generation are made elsewhere.

pub mod chat_template;
pub mod classify;
pub mod layout;
pub mod lm;
pub mod metric;
pub mod read;
pub mod scenario;
pub mod split;
pub mod tokenizer;

mod error;
mod template;

pub use error::{At, TaskError, Unit};
