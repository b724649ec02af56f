//! Trains a small GPT-2 from nothing on a scenario's corpus: the base of the quickstart.

use std::path::Path;

use anyhow::{Context, Result};
use models::{Gpt2Config, Model};
use peft_core::{Adapted, Init, adapt};
use rand::{SeedableRng, seq::SliceRandom};
use tasks::scenario::{Scenario, ScenarioConfig};
use tasks::split::Splits;
use tasks::tokenizer::{END_OF_TEXT, train_bpe};
use tokenizers::Tokenizer;

use crate::data::{Data, Example, Target};
use crate::evaluate::Evaluator;
use crate::heads::Heads;
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
    /// Standard deviation of the starting weights.
    pub initializer_range: f64,
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
    let rows = rows(&scenario.corpus, &tokenizer, eos)?;
    let held_out = rows.len() / 50 + 1;
    let (dev, train_rows) = rows.split_at(held_out);
    let data = Data {
        splits: Splits {
            train: train_rows.to_vec(),
            dev: dev.to_vec(),
            test: Vec::new(),
        },
        heads: Heads::default(),
        eos: Some(eos),
        stop: None,
        info: Default::default(),
        warnings: Vec::new(),
    };

    let device = peft_core::device(device)?;
    let training = device.clone().autodiff();
    seed_device(plan.seed, &training);
    let mut init = Init::new(plan.seed, &training);
    let (width, layers, heads) = plan.shape;
    let vocabulary = tokenizer.get_vocab_size(true);
    let mut shape = Gpt2Config::new(vocabulary, plan.positions, width, layers, heads);
    shape.initializer_range = plan.initializer_range;
    let model = Model::random_gpt2(shape.clone(), &mut init)?;
    let method = peft_adapter::Full {};
    let model = adapt(model, &method, None, &mut init)?;
    let task = task(plan);
    let evaluator = Evaluator {
        task: &task,
        data: &data,
        tokenizer: &tokenizer,
        batch_size: config.eval_batch_size,
        device,
    };
    let seed = plan.seed;
    let outcome = train(
        model, &method, config, seed, &training, &evaluator, progress,
    );
    let model = outcome.model?;
    let loss = evaluator.quick(&model, dev)?.values["loss"];
    write(&model, &shape, eos, &tokenizer, out)?;
    Ok(loss)
}

/// One row a sentence, ended by the end token. Packing several into a row would save padding, but
/// a model this small learns the facts of the corpus much later from packed rows.
fn rows(corpus: &[String], tokenizer: &Tokenizer, eos: u32) -> Result<Vec<Example>> {
    let row = |sentence: &String| -> Result<Example> {
        let encoding = tokenizer
            .encode(sentence.as_str(), false)
            .map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut ids = encoding.get_ids().to_vec();
        ids.push(eos);
        let (input, expected) = (String::new(), String::new());
        Ok(Example {
            task: 0,
            ids,
            target: Target::Completion(1),
            input,
            expected,
        })
    };
    let mut rows: Vec<Example> = corpus.iter().map(row).collect::<Result<_>>()?;
    // The corpus is in the order it was generated in; held-out rows should come from everywhere.
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
        format: None,
        chat_template: None,
        loss_on: Default::default(),
        max_length: plan.positions,
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
