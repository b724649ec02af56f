//! The command line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::registry::Registry;
use crate::verbs;

/// Compares parameter-efficient fine-tuning methods: adapters, LoRA and QLoRA.
#[derive(Parser)]
#[command(name = "peft-bench", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run every trial of a study that has no record yet, then write the report.
    #[command(after_help = "Example:\n  peft-bench sweep experiments/quickstart.toml --threads 2")]
    Sweep(verbs::sweep::Sweep),
    /// Rebuild tables, plots and the HTML page from records alone.
    #[command(after_help = "Example:\n  peft-bench report results/sst2-minilm")]
    Report(verbs::report::Report),
    /// Train one method of a study and save its adapter.
    #[command(
        after_help = "Example:\n  peft-bench train experiments/quickstart.toml \\\n    --method 'kind = \"lora\"\n              rank = 8' --out out/my-adapter"
    )]
    Train(verbs::train::Train),
    /// Score a base model, with or without an adapter, on a study's dev and test data.
    #[command(
        after_help = "Example:\n  peft-bench evaluate experiments/quickstart.toml --adapter out/my-adapter"
    )]
    Evaluate(verbs::evaluate::Evaluate),
    /// Continue a prompt.
    #[command(
        after_help = "Example:\n  peft-bench generate --model experiments/base/quickstart --adapter out/my-adapter \\\n    --prompt 'User likes cooking videos.' --max-new-tokens 40"
    )]
    Generate(verbs::generate::Generate),
    /// Talk to a language model on standard input; /help lists the commands.
    #[command(
        after_help = "Example:\n  peft-bench chat --model hf://org/name --adapter out/my-adapter"
    )]
    Chat(verbs::chat::Chat),
    /// Compute the logits of given token ids, for checking against another program.
    #[command(
        after_help = "Example:\n  peft-bench logits --model DIR --inputs in.safetensors --out out.safetensors"
    )]
    Logits(verbs::logits::Logits),
    /// Write an adapter in another format: ours, HF PEFT's or AdapterHub's.
    #[command(
        after_help = "Example:\n  peft-bench convert --model DIR --adapter out/my-adapter --to peft --out out/for-python"
    )]
    Convert(verbs::convert::Convert),
    /// Write base and adapter as one plain model folder.
    #[command(
        after_help = "Example:\n  peft-bench merge --model DIR --adapter out/my-adapter --out out/merged"
    )]
    Merge(verbs::merge::Merge),
    /// Show the largest difference between the tensors of two safetensors files.
    #[command(
        after_help = "Example:\n  peft-bench compare ours.safetensors theirs.safetensors --tolerance 1e-4"
    )]
    Compare(verbs::compare::Compare),
    /// Count parameters of a base model and of a method on it.
    #[command(
        after_help = "Example:\n  peft-bench params --shape distilgpt2 --method 'kind = \"lora\"\n  rank = 8'"
    )]
    Params(verbs::params::Params),
    /// Time training steps of a shape with random weights; one JSON line.
    #[command(
        after_help = "Example:\n  peft-bench speed --shape distilgpt2 --method 'kind = \"lora\"\n  rank = 8\n  targets = [\"c_attn\"]' \\\n    --batch 8 --seq 128 --steps 10 --threads 2"
    )]
    Speed(verbs::speed::Speed),
    /// List the methods, with paper, seam and parameter formula.
    #[command(after_help = "Example:\n  peft-bench methods --kind lora")]
    Methods(verbs::methods::Methods),
    /// Pack a model's linear layers to 4 or 8 bits, as a folder that bitsandbytes reads too.
    #[command(
        after_help = "Example:\n  peft-bench quantize --model DIR --storage nf4 --double-quant --out DIR-nf4"
    )]
    Quantize(verbs::quantize::Quantize),
    /// Pretrain a small GPT-2 on the quickstart's corpus.
    #[command(after_help = "Example:\n  peft-bench pretrain --out experiments/base/quickstart")]
    Pretrain(verbs::pretrain::Pretrain),
    /// Run one trial given as JSON on standard input (used by sweep).
    #[command(hide = true)]
    RunTrial(verbs::sweep::RunTrial),
}

/// Options of every verb that computes.
#[derive(Args, Clone, Debug)]
pub struct Compute {
    /// Where to compute: cpu, ndarray, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Number of CPU threads; all cores where not given.
    #[arg(long)]
    pub threads: Option<usize>,
}

impl Compute {
    /// Runs the work on one of so many threads, which also share its parallel parts.
    ///
    /// The caller being one of the threads matters: a caller outside the pool is one thread too
    /// many for the cores, and every parallel product would wake others while it sleeps.
    ///
    /// # Errors
    /// If the number is zero, threads are running already, or the work fails.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        anyhow::ensure!(
            self.threads != Some(0),
            "`--threads` is 0, expected at least 1"
        );
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads.unwrap_or(0))
            .build_global()?;
        rayon::scope(|_| work())
    }
}

/// Options of every verb that reads a study.
#[derive(Args, Clone, Debug)]
pub struct StudyFile {
    /// The study file.
    pub study: PathBuf,
    /// Value of a variable the study uses, as NAME=VALUE; the environment is used otherwise.
    #[arg(long = "var", value_parser = pair)]
    pub variables: Vec<(String, String)>,
}

impl StudyFile {
    /// Loads the study.
    ///
    /// # Errors
    /// As [`Study::load`](crate::study::Study::load).
    pub fn load(&self) -> Result<crate::study::Study> {
        let variables: BTreeMap<_, _> = self.variables.iter().cloned().collect();
        Ok(crate::study::Study::load(&self.study, &variables)?)
    }
}

/// Refuses a folder that holds something already: nothing is written over.
///
/// # Errors
/// If it is no folder, or not empty.
pub(crate) fn check_free(out: &std::path::Path) -> Result<()> {
    let held = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => {
            return Err(anyhow::Error::new(error).context(format!("`--out {}`", out.display())));
        }
    };
    anyhow::ensure!(
        !held,
        "`{}` is not empty; give another `--out`, or remove it first",
        out.display()
    );
    Ok(())
}

/// Splits NAME=VALUE.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((pair.0.into(), pair.1.into()))
}

/// Parses the command line, runs the verb and reports errors.
///
/// Exit codes: 0 all is well, 1 an error, 2 a bad command line, 3 a sweep with failed trials.
pub fn run(registry: &Registry) -> ExitCode {
    crate::memory::keep_buffers();
    let verb = Cli::parse().verb;
    let result = match verb {
        Verb::Sweep(args) => return code(args.run(registry)),
        Verb::Report(args) => args.run(),
        Verb::Train(args) => args.run(registry),
        Verb::Evaluate(args) => args.run(registry),
        Verb::Generate(args) => args.run(registry),
        Verb::Chat(args) => args.run(registry),
        Verb::Logits(args) => args.run(registry),
        Verb::Compare(args) => args.run(),
        Verb::Convert(args) => args.run(registry),
        Verb::Merge(args) => args.run(registry),
        Verb::Params(args) => args.run(registry),
        Verb::Speed(args) => args.run(registry),
        Verb::Methods(args) => args.run(registry),
        Verb::Quantize(args) => args.run(),
        Verb::Pretrain(args) => args.run(),
        Verb::RunTrial(args) => args.run(registry),
    };
    code(result.map(|()| ExitCode::SUCCESS))
}

fn code(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", crate::error::told(&error));
        ExitCode::FAILURE
    })
}

/// Prints to standard output; a closed pipe ends the program quietly, as `head` expects.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Flushed, for a text that is shown while it grows has no line's end.
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_folder_that_holds_something_is_not_written_into() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_free(folder.path()).is_ok());
        assert!(check_free(&folder.path().join("new")).is_ok());
        std::fs::write(folder.path().join("kept.txt"), "x").unwrap();
        let error = check_free(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
    }

    #[test]
    fn every_verb_shows_an_example() {
        let command = Cli::command();
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let help = verb
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("peft-bench"), "{}", verb.get_name());
        }
    }
}
