//! `sweep`: every trial of a study, then the report.

mod check;

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use report::RecordStore;
use report::record::Record;

use crate::cli::{Compute, StudyFile, print};
use crate::data::{self, Tables};
use crate::environment;
use crate::execute::{self, Executor, Subprocess};
use crate::memory;
use crate::plan::Plan;
use crate::process::{self, Claim};
use crate::progress;
use crate::registry::Registry;
use crate::source;
use crate::study::Study;
use crate::trial::{Trial, expand};
use check::Check;

/// Exit code of a sweep in which a trial failed.
const SOME_FAILED: u8 = 3;

/// Arguments of `sweep`.
#[derive(Args)]
pub struct Sweep {
    #[command(flatten)]
    study: StudyFile,
    #[command(flatten)]
    compute: Compute,
    /// Folder of records and report; `out/NAME` where not given.
    #[arg(long)]
    out: Option<PathBuf>,
    /// List the trials with trainable parameters and predicted memory, and run none.
    #[arg(long)]
    dry_run: bool,
    /// Only check that the study loads and expands; needs neither model nor data.
    #[arg(long)]
    check: bool,
    /// Run failed trials again.
    #[arg(long)]
    retry_failed: bool,
    /// Run trials again whose records are of another build of this program.
    #[arg(long)]
    redo: bool,
    /// Run only trials whose id contains this text, or of a method of this kind or label.
    #[arg(long)]
    only: Option<String>,
    /// Show nothing but the result.
    #[arg(long)]
    quiet: bool,
    /// This build; see [`environment::program`].
    #[arg(skip)]
    program: String,
}

impl Sweep {
    pub(crate) fn run(mut self, registry: &Registry) -> Result<ExitCode> {
        self.program = environment::program();
        let mut study = self.study.load()?;
        if self.check {
            let trials = expand(&study, registry, &self.compute.device, &BTreeMap::new())?;
            let count = Plan::new(&study, trials).count();
            print(&format!("{}: {count} trials\n", self.study.study.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        peft_core::device(&self.compute.device)?;
        study.pin(self.quiet)?;
        let tables = data::tables(&study.task)?;
        let sources = fingerprints(&study, &tables)?;
        let all = expand(&study, registry, &self.compute.device, &sources)?;
        let wanted = all.iter().filter(|trial| self.wants(trial));
        let trials: Vec<Trial> = wanted.cloned().collect();
        if let (Some(part), true) = (&self.only, trials.is_empty()) {
            bail!(
                "no trial's id contains `{part}`, and no method has it as its kind or label; \
                 `--dry-run` without `--only` lists the trials"
            );
        }
        let check = Check {
            study: &study,
            tables: &tables,
            registry,
        };
        let listing = check.listing(&all, &trials)?;
        // Trials run in processes of their own; what was read here is not needed beside them.
        memory::restart_peak();
        if self.dry_run {
            print(&listing)?;
            return Ok(ExitCode::SUCCESS);
        }
        let out = self
            .out
            .clone()
            .unwrap_or_else(|| Path::new("out").join(&study.name));
        let store = RecordStore::open(&out)?;
        let _claim = Claim::new(&out)?;
        let plan = Plan::new(&study, all.clone());
        self.run_missing(&plan, &store, registry)?;
        self.tell_of_other_builds(&plan, &store)?;
        // The whole study, whatever part of it was run now.
        finish(&store, &all, &out)
    }

    /// Whether a trial is to be run now.
    fn wants(&self, trial: &Trial) -> bool {
        let part = self.only.as_ref();
        let of =
            |part: &String| trial.id.contains(part) || trial.kind == *part || trial.label == *part;
        part.is_none_or(of)
    }

    /// Runs what has no record yet; where rates are tuned on some seeds, those come first.
    fn run_missing(&self, plan: &Plan, store: &RecordStore, registry: &Registry) -> Result<()> {
        let executor = Subprocess {
            registry,
            threads: self.compute.threads,
            quiet: self.quiet,
        };
        for (index, trial) in plan.tuning().iter().enumerate() {
            if self.wants(trial) {
                self.run_one(trial, (index, plan.count()), &executor, store)?;
            }
        }
        let tuned = plan.tuning().len();
        for (index, trial) in plan.rest(store)?.into_iter().enumerate() {
            if self.wants(trial) {
                self.run_one(trial, (tuned + index, plan.count()), &executor, store)?;
            }
        }
        Ok(())
    }

    /// Whether a record is of another build, in which a method may compute something else.
    fn is_of_another_build(&self, record: &Record) -> bool {
        record.environment.program != self.program
    }

    /// Says how many records were kept that another build has made.
    fn tell_of_other_builds(&self, plan: &Plan, store: &RecordStore) -> Result<()> {
        let trials = plan.tuning().iter().chain(plan.rest(store)?);
        let records = trials.map(|trial| store.find(&trial.hash));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let others = records.iter().flatten();
        match others.filter(|r| self.is_of_another_build(r)).count() {
            0 => {}
            count => self.say(&format!(
                "note: {count} records are of another build of this program; where a method's code \
                 has changed since, `--redo` runs them again (`--only` some of them)"
            )),
        }
        Ok(())
    }

    /// Runs a trial that has no record yet, the `index`-th of `count`.
    fn run_one(
        &self,
        trial: &Trial,
        (index, count): (usize, usize),
        executor: &impl Executor,
        store: &RecordStore,
    ) -> Result<()> {
        let place = format!("[{}/{count}] {}", index + 1, trial.id);
        let old = store.find(&trial.hash)?;
        let again = |record: &Record| {
            (self.retry_failed && !record.status.is_ok())
                || (self.redo && self.is_of_another_build(record))
        };
        if let Some(record) = old.filter(|record| !again(record)) {
            self.say(&format!("{place}: has a record ({})", record.status.name()));
            return Ok(());
        }
        let record = executor.run(trial, store)?;
        let metric = &record.trial.metric;
        let score: String = ["dev", "test"]
            .into_iter()
            .filter_map(|split| Some((split, record.score(split)?)))
            .map(|(split, score)| format!(", {split} {metric} {score:.4}"))
            .collect();
        let (seconds, status) = (record.time.total_s, record.status.name());
        self.say(&format!("{place}: {status}{score}, {seconds:.1} s"));
        if !record.status.is_ok() {
            eprintln!("{place}: {}", record.status.reason());
        }
        Ok(())
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }
}

/// Fingerprints of the model and the data.
fn fingerprints(study: &Study, tables: &Tables) -> Result<BTreeMap<String, String>> {
    let mut sources = tables.fingerprints(&study.task);
    let chat = data::chat_fingerprint(&study.task, Path::new(&study.model))?;
    sources.extend(chat.map(|hash| ("chat_template".to_string(), hash)));
    sources.insert(
        "model".into(),
        source::fingerprint(Path::new(&study.model))?,
    );
    Ok(sources)
}

fn finish(store: &RecordStore, trials: &[Trial], out: &Path) -> Result<ExitCode> {
    let records = of_the_study(store.load_all()?, trials);
    let report = report::write_report(&records, out)?;
    print(&format!("{}\n", report.to_table()))?;
    print(&format!("report: {}\n", out.join("report.html").display()))?;
    let failed = records
        .iter()
        .filter(|record| !record.status.is_ok())
        .count();
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{failed} trials failed; `--retry-failed` runs them again");
    Ok(ExitCode::from(SOME_FAILED))
}

/// The records of these trials, in their order and under the names that they have now.
fn of_the_study(records: Vec<Record>, trials: &[Trial]) -> Vec<Record> {
    let mut found: HashMap<String, Record> = records
        .into_iter()
        .map(|record| (record.trial.hash.clone(), record))
        .collect();
    let record = |trial: &Trial| Some(trial.renamed(found.remove(&trial.hash)?));
    trials.iter().filter_map(record).collect()
}

/// Arguments of the hidden `run-trial`.
#[derive(Args)]
pub struct RunTrial {
    #[arg(long)]
    out: PathBuf,
    #[arg(long)]
    threads: Option<usize>,
    #[arg(long)]
    quiet: bool,
}

impl RunTrial {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        process::die_with_parent();
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        let trial: Trial = serde_json::from_str(&text).context("the trial is not valid JSON")?;
        let compute = Compute {
            device: trial.device.clone(),
            threads: self.threads,
        };
        let record = compute.run(|| {
            let mut progress = progress::display(&trial.id, self.quiet);
            execute::run_to_record(&trial, registry, &mut *progress)
        })?;
        RecordStore::open(&self.out)?.append(&record)?;
        Ok(())
    }
}
