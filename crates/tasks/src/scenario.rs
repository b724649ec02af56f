//! The quickstart scenario: video recommendation, generated from a seed.
//!
//! A user states a taste, the model answers from a catalogue:
//!
//! ```text
//! User likes kitchen recipes: something brief for newcomers.
//! Assistant: I recommend 'Pasta Tutorial' (youtube.com/101) for its clear instructions.
//! ```
//!
//! Topic, level and length together name one video, so every question has exactly one right answer
//! and exact match is a fair score. The pretraining corpus tells the facts in plain English, never
//! as question and answer of this form; the questions of dev and test ask for videos that no
//! question of train asks for. A fine-tuned model must therefore have learned the *task* and kept
//! the *facts*: answers memorised in fine-tuning do not score.

mod catalogue;
mod corpus;
mod phrase;
mod taste;
mod topic;

use std::io::Write;
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::lm::{LmConfig, Overlong};
pub use catalogue::{Length, Level, Video};
pub use taste::LmRow;

/// Entries of the tokenizer that suits the default scenario.
pub const VOCABULARY: usize = 1200;

/// Tokens that hold every question with its answer, by a tokenizer of [`VOCABULARY`] entries.
pub const MAX_LENGTH: usize = 56;

/// How the rows of a scenario become examples.
#[must_use]
pub fn lm_config() -> LmConfig {
    LmConfig {
        prompt: "{{ prompt }}".to_string(),
        completion: "{{ completion }}".to_string(),
        layout: None,
        loss_on: Default::default(),
        max_length: MAX_LENGTH,
        overlong: Overlong::Error,
    }
}

/// Sizes of a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScenarioConfig {
    /// Topics of the catalogue; each has six videos.
    pub topics: usize,
    /// Sentences of the pretraining corpus.
    pub sentences: usize,
    /// Questions to fine-tune on.
    pub train: usize,
    /// Questions to choose settings by.
    pub dev: usize,
    /// Questions to report on.
    pub test: usize,
}

impl Default for ScenarioConfig {
    fn default() -> Self {
        Self {
            topics: 12,
            sentences: 13_000,
            train: 600,
            dev: 120,
            test: 240,
        }
    }
}

/// A generated scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// The videos.
    pub catalogue: Vec<Video>,
    /// The pretraining corpus, one sentence each.
    pub corpus: Vec<String>,
    /// Questions to fine-tune on.
    pub train: Vec<LmRow>,
    /// Questions to choose settings by.
    pub dev: Vec<LmRow>,
    /// Questions to report on.
    pub test: Vec<LmRow>,
}

impl Scenario {
    /// Generates the scenario of a seed: the same on every machine.
    ///
    /// # Errors
    /// If the configuration asks for more topics or different questions than there are.
    pub fn generate(seed: u64, config: &ScenarioConfig) -> Result<Self, TaskError> {
        let most = topic::TOPICS.len();
        if config.topics == 0 || config.topics > most {
            return Err(TaskError::ScenarioTopics {
                found: config.topics,
                most,
            });
        }
        // One stream for each part: a change of one size leaves the other parts as they were.
        let stream = |number| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(number);
            rng
        };
        let catalogue = catalogue::build(config.topics, &mut stream(0));
        let corpus = corpus::write(&catalogue, config.sentences, &mut stream(1));
        let sizes = [config.train, config.dev, config.test];
        let taste::Parts { train, dev, test } = taste::write(&catalogue, sizes, &mut stream(2))?;
        Ok(Self {
            catalogue,
            corpus,
            train,
            dev,
            test,
        })
    }

    /// Writes `catalogue.jsonl`, `corpus.txt`, `train.jsonl`, `dev.jsonl` and `test.jsonl` into
    /// `folder`, which is created where it is missing.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), TaskError> {
        std::fs::create_dir_all(folder).map_err(TaskError::io(folder))?;
        write_lines(&folder.join("corpus.txt"), &self.corpus, Clone::clone)?;
        write_lines(&folder.join("catalogue.jsonl"), &self.catalogue, json)?;
        for (name, rows) in [
            ("train", &self.train),
            ("dev", &self.dev),
            ("test", &self.test),
        ] {
            write_lines(&folder.join(format!("{name}.jsonl")), rows, json)?;
        }
        Ok(())
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain structs serialise")
}

fn write_lines<T>(path: &Path, items: &[T], line: impl Fn(&T) -> String) -> Result<(), TaskError> {
    let write = || -> std::io::Result<()> {
        let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
        for item in items {
            writeln!(out, "{}", line(item))?;
        }
        out.flush()
    };
    write().map_err(TaskError::io(path))
}

#[cfg(test)]
mod tests;
