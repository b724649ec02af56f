//! `report`: tables, plots and page from records alone.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use report::RecordStore;

use crate::cli::print;

/// Arguments of `report`.
#[derive(Args)]
pub struct Report {
    /// Folder of a study's results.
    folder: PathBuf,
    /// Where to write; the same folder where not given.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Report {
    pub(crate) fn run(self) -> Result<()> {
        anyhow::ensure!(
            self.folder.join("records").is_dir(),
            "`{}` holds no `records`; run `peft-bench sweep` first",
            self.folder.display()
        );
        let records = RecordStore::open(&self.folder)?.load_all()?;
        let out = self.out.unwrap_or(self.folder);
        let report = report::write_report(&records, &out)?;
        print(&format!(
            "{}\nreport: {}\n",
            report.to_table(),
            out.join("report.html").display()
        ))
    }
}
