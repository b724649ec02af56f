//! Trains a small GPT-2 from nothing on a scenario's corpus: the base of the quickstart.

use std::path::Path;

use anyhow::{Context, Result};
use models::{Gpt2Config, Model};
use peft_core::{Adapted, Init, adapt};
use tasks::scenario::{Scenario, ScenarioConfig};
use tasks::split::Splits;
use tasks::tokenizer::{END_OF_TEXT, train_bpe};
use tokenizers::Tokenizer;

use crate::data::{Data, Example, Target};
use crate::evaluate::Evaluator;
use crate::progress::Progress;
use crate::study::{DataSource, Limit, ScenarioSource, Task, TrainConfig};
use crate::train::{seed_device, train};

/// What to pretrain.
#[derive(Clone, Debug)]
pub struct Pretraining {
    /// Seed of the corpus.
    pub scenario: u64,
    /// Sizes of the corpus.
    pub sizes: ScenarioConfig,
    /// Entries of the tokenizer.
    pub vocabulary: usize,
    /// Width, layers and heads of the model.
    pub shape: (usize, usize, usize),
    /// Positions of the model.
    pub positions: usize,
    /// Tokens of a training row.
    pub length: usize,
    /// Seed of the model's start and of the order of the data.
    pub seed: u64,
}

/// Pretrains and writes a Hugging Face folder; returns the final loss on held-out rows.
///
/// # Errors
/// If the corpus or the tokenizer cannot be made, training diverges, or the folder cannot be
/// written.
pub fn pretrain(
    plan: &Pretraining,
    config: &TrainConfig,
    device: &str,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<f64> {
    let scenario = Scenario::generate(plan.scenario, &plan.sizes)?;
    let tokenizer = train_bpe(&scenario.corpus, plan.vocabulary)?;
    let eos = tokenizer
        .token_to_id(END_OF_TEXT)
        .context("the tokenizer has an end token")?;
    let rows = pack(&scenario.corpus, &tokenizer, eos, plan.length)?;
    let held_out = rows.len() / 50 + 1;
    let (dev, train_rows) = rows.split_at(held_out);
    let data = Data {
        splits: Splits {
            train: train_rows.to_vec(),
            dev: dev.to_vec(),
            test: Vec::new(),
        },
        labels: Vec::new(),
        eos: Some(eos),
        info: Default::default(),
        warnings: Vec::new(),
    };

    let device = peft_core::device(device)?;
    let training = device.clone().autodiff();
    seed_device(plan.seed, &training);
    let mut init = Init::new(plan.seed, &training);
    let (width, layers, heads) = plan.shape;
    let vocabulary = tokenizer.get_vocab_size(true);
    let shape = Gpt2Config::new(vocabulary, plan.positions, width, layers, heads);
    let model = Model::random_gpt2(shape.clone(), &mut init)?;
    let model = adapt(model, &peft_adapter::Full {}, None, &mut init)?;
    let task = task(plan);
    let evaluator = Evaluator {
        task: &task,
        data: &data,
        tokenizer: &tokenizer,
        batch_size: config.eval_batch_size,
        device,
    };
    let outcome = train(model, config, plan.seed, &training, &evaluator, progress)?;
    let loss = evaluator.quick(&outcome.model, dev)?.values["loss"];
    write(&outcome.model, &shape, eos, &tokenizer, out)?;
    Ok(loss)
}

/// The corpus as rows of equal length, every sentence ended by the end token.
fn pack(corpus: &[String], tokenizer: &Tokenizer, eos: u32, length: usize) -> Result<Vec<Example>> {
    let mut ids = vec![eos];
    for sentence in corpus {
        let encoding = tokenizer
            .encode(sentence.as_str(), false)
            .map_err(|e| anyhow::anyhow!("{e}"))?;
        ids.extend_from_slice(encoding.get_ids());
        ids.push(eos);
    }
    let example = |row: &[u32]| Example {
        ids: row.to_vec(),
        target: Target::Completion(1),
        input: String::new(),
        expected: String::new(),
    };
    let mut rows: Vec<Example> = ids.chunks_exact(length).map(example).collect();
    // The corpus is in the order it was generated in; held-out rows should come from everywhere.
    use rand::{SeedableRng, seq::SliceRandom};
    rows.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(0));
    Ok(rows)
}

fn task(plan: &Pretraining) -> Task {
    let source = ScenarioSource {
        scenario: plan.scenario,
        sizes: plan.sizes.clone(),
    };
    Task::Completion {
        data: DataSource::Scenario(source),
        prompt: String::new(),
        completion: String::new(),
        max_length: plan.length,
        max_new_tokens: 1,
        metric: tasks::metric::Metric::Perplexity,
        overlong: Default::default(),
        limit: Limit::default(),
    }
}

fn write(
    model: &Adapted<Model>,
    shape: &Gpt2Config,
    eos: u32,
    tokenizer: &Tokenizer,
    out: &Path,
) -> Result<()> {
    let mut config = serde_json::to_value(shape)?;
    config["model_type"] = "gpt2".into();
    config["architectures"] = serde_json::json!(["GPT2LMHeadModel"]);
    config["bos_token_id"] = eos.into();
    config["eos_token_id"] = eos.into();
    models::save(&model.host, &config, out)?;
    let text = tokenizer
        .to_string(false)
        .map_err(|e| anyhow::anyhow!("{e}"))?;
    peft_core::state::write_atomically(&out.join("tokenizer.json"), text.as_bytes())?;
    Ok(())
}
