//! The experiment harness: one TOML file to trials, records and a report.
//!
//! `peft-bench` is a thin program around [`cli::run`]. A crate of your own can add methods to the
//! [`Registry`](registry::Registry) and call the same entry point.

pub mod adamw;
pub mod adapter;
pub mod adapters;
pub mod adversarial;
pub mod batching;
pub mod budget;
pub mod checkpointing;
pub mod cli;
pub mod completion;
pub mod conversation;
pub mod data;
pub mod environment;
pub mod error;
pub mod evaluate;
pub mod execute;
pub mod fixed;
pub mod flops;
pub mod groups;
pub mod heads;
pub mod hub;
pub mod layer_drop;
pub mod look;
pub mod memory;
pub mod mixture;
pub mod parts;
mod plain;
pub mod plan;
pub mod pretrain;
pub mod process;
pub mod progress;
mod quantile;
pub mod quantize;
pub mod registry;
pub mod schedule;
pub mod source;
pub mod speed;
pub mod stepper;
pub mod storage;
pub mod study;
#[cfg(test)]
mod testing;
pub mod token_file;
pub mod train;
pub mod trainee;
pub mod trial;
pub mod verbs;
mod wording;
