//! `generate`: continues prompts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use models::{Choice, Generation};

use super::AdapterArgs;
use crate::cli::{Compute, print};
use crate::completion::{Completion, Writer};
use crate::registry::Registry;
use crate::source;

/// Arguments of `generate`.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    base: Adaptable,
    /// Which of the adapters to use; `base` for none of them.
    #[arg(long = "use", value_name = "NAME")]
    chosen: Option<String>,
    /// The text to continue; may be given several times.
    #[arg(long, required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// File with a prompt a line.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// Prompts continued at once.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Most new tokens.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// End a text before this one; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The number of the prompts' task, for an adapter that learnt several.
    #[arg(long, value_name = "N", default_value_t = 0)]
    task: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// Print a JSON line a prompt: prompt, completion, tokens (their number) and what stopped it
    /// (eos, stop_text or length).
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

/// A base model and adapters for it.
#[derive(Args)]
pub(crate) struct Adaptable {
    /// Folder of the base model, or hf://organisation/name[@revision].
    #[arg(long)]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) with: AdapterArgs,
}

/// How tokens are chosen.
#[derive(Args)]
pub(crate) struct Sampling {
    /// Draw tokens at this temperature; greedy where not given.
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    /// Draw from the k most likely tokens only; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Draw from the most likely tokens that reach this probability together.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

impl Generate {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        ensure!(self.batch > 0, "`--batch` is 0, expected at least 1");
        let texts = self.texts()?;
        let device = peft_core::device(&self.compute.device)?;
        let model = source::pinned(&self.base.model, false)?;
        let adapters = self.base.with.load(&model, None, registry, &device)?;
        let name = adapters.choose(self.chosen.as_deref());
        let name = name.context("which adapter to use is said by `--use`")?;
        let adapted = adapters.get(name)?;
        adapters.check_task(name, self.task, registry)?;
        ensure!(
            adapted.host.is_causal(),
            "only language models generate text"
        );
        let tokenizer = source::tokenizer(&model, &adapted.host)?;
        let writer = Writer {
            model: adapted,
            tokenizer: &tokenizer,
            device: &device,
        };
        let eos = source::ending_ids(&model, adapters.config(), &tokenizer)?;
        for (part, texts) in texts.chunks(self.batch).enumerate() {
            let generation = Generation {
                task: self.task,
                max_new_tokens: self.max_new_tokens,
                eos: eos.clone(),
                choice: self.sampling.choice((part * self.batch) as u64)?,
            };
            self.write(&writer, texts, &generation)?;
        }
        Ok(())
    }

    fn texts(&self) -> Result<Vec<String>> {
        match &self.prompts {
            Some(file) => prompts(file),
            None => Ok(self.prompt.clone()),
        }
    }

    /// Continues the texts and prints them; a single one as it grows.
    fn write(&self, writer: &Writer<'_>, texts: &[String], generation: &Generation) -> Result<()> {
        let ids = texts.iter().map(|text| writer.encode(text));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        if let ([text], false) = (texts, self.json) {
            print(text)?;
            let show = &mut |_: usize, piece: &str| print(piece);
            writer.complete(&rows, generation, &self.stop, show)?;
            return print("\n");
        }
        let done = writer.complete(&rows, generation, &self.stop, &mut |_, _| Ok(()))?;
        for (prompt, completion) in texts.iter().zip(done) {
            print(&self.line(prompt, &completion))?;
        }
        Ok(())
    }

    fn line(&self, prompt: &str, completion: &Completion) -> String {
        let Completion {
            text,
            tokens,
            stopped,
        } = completion;
        if !self.json {
            return format!("{prompt}{text}\n");
        }
        let line = serde_json::json!({
            "prompt": prompt, "completion": text, "tokens": tokens, "stopped": stopped,
        });
        format!("{line}\n")
    }
}

/// The lines of a file of prompts.
fn prompts(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the prompts `{}`", file.display()))?;
    let lines: Vec<String> = text.lines().map(String::from).collect();
    ensure!(!lines.is_empty(), "`{}` holds no prompts", file.display());
    let empty = lines.iter().position(|line| line.trim().is_empty());
    if let Some(index) = empty {
        let (line, file) = (index + 1, file.display());
        anyhow::bail!("line {line} of `{file}` is empty, expected a prompt on every line");
    }
    Ok(lines)
}

impl Sampling {
    /// The choice, its seed so far from the one given.
    pub(crate) fn choice(&self, offset: u64) -> Result<Choice> {
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
            seed: self.seed.wrapping_add(offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_lines_and_an_empty_one_is_an_error_that_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prompts.txt");
        std::fs::write(&file, "one\ntwo three\n").unwrap();
        assert_eq!(prompts(&file).unwrap(), ["one", "two three"]);
        std::fs::write(&file, "one\n\nthree\n").unwrap();
        let error = prompts(&file).unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("prompts.txt"),
            "{error}"
        );
        std::fs::write(&file, "").unwrap();
        assert!(prompts(&file).is_err());
    }
}
