//! `generate`: continues a prompt.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use models::{Choice, Generation};

use crate::cli::{Compute, print};
use crate::registry::Registry;
use crate::source;

/// Arguments of `generate`.
#[derive(Args)]
pub struct Generate {
    /// Folder of the base model.
    #[arg(long)]
    model: PathBuf,
    /// Folder of a trained adapter.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The text to continue; may be given several times.
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// Most new tokens.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Draw tokens at this temperature; greedy where not given.
    #[arg(long)]
    temperature: Option<f32>,
    /// Draw from the k most likely tokens only; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw from the most likely tokens that reach this probability together.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

impl Generate {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        let device = peft_core::device(&self.compute.device)?;
        let ready = super::load(&self.model, self.adapter.as_deref(), registry, &device)?;
        ensure!(
            ready.model.host.is_causal(),
            "only language models generate text"
        );
        let tokenizer = source::tokenizer(&self.model, &ready.model.host)?;
        let generation = Generation {
            max_new_tokens: self.max_new_tokens,
            eos: Some(source::eos(&ready.config, &tokenizer)?),
            choice: self.choice()?,
        };
        let encode = |text: &String| -> Result<Vec<u32>> {
            let encoding = tokenizer
                .encode(text.as_str(), true)
                .map_err(|e| anyhow::anyhow!("{e}"))?;
            ensure!(!encoding.is_empty(), "the prompt `{text}` has no tokens");
            Ok(encoding.get_ids().to_vec())
        };
        let prompts = self.prompt.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let limit = ready.model.host.max_length();
        ensure!(
            longest + self.max_new_tokens <= limit,
            "{longest} prompt tokens and {} new ones exceed the model's {limit} positions; lower \
             `--max-new-tokens`",
            self.max_new_tokens
        );
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let texts = models::generate(&ready.model, &rows, &generation, &device);
        for (prompt, tokens) in self.prompt.iter().zip(texts) {
            let text = tokenizer
                .decode(&tokens, true)
                .map_err(|e| anyhow::anyhow!("{e}"))?;
            print(&format!("{prompt}{text}\n"))?;
        }
        Ok(())
    }

    fn choice(&self) -> Result<Choice> {
        let Some(temperature) = self.temperature else {
            return Ok(Choice::Greedy);
        };
        ensure!(
            temperature > 0.0,
            "`--temperature` is {temperature}, expected above 0"
        );
        ensure!(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "`--top-p` is {}, expected above 0 and at most 1",
            self.top_p
        );
        Ok(Choice::Sample {
            temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
        })
    }
}
