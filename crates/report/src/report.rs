//! Writes a report: tables, pages and plots in one folder, from records alone.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic;
use crate::csv::runs_csv;
use crate::error::ReportError;
use crate::group::groups;
use crate::page;
use crate::plots::{self, Plots, Study};
use crate::record::Record;
use crate::summary::{Summary, metric_of};
use crate::view::View;

/// A report that was written.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the records say.
    pub summary: Summary,
    /// The files of the report, as written.
    pub files: Vec<PathBuf>,
    /// Plots that could not be drawn from these records, with the reason.
    pub skipped: Vec<(String, String)>,
}

impl Report {
    /// The table of the summary as plain text, at most 100 columns wide.
    #[must_use]
    pub fn to_table(&self) -> String {
        self.summary.to_table()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary.fmt(f)?;
        for (plot, reason) in &self.skipped {
            writeln!(f, "note: plot `{plot}` is missing: {reason}")?;
        }
        Ok(())
    }
}

/// Writes `runs.csv`, `REPORT.md`, `report.html` and `plots/*.svg` and `.png` into `out`, each
/// whole or not at all, replacing those of an earlier report.
///
/// # Errors
/// If there are no records, if they do not rank by one metric, or if a file cannot be written.
pub fn write_report(records: &[Record], out: &Path) -> Result<Report, ReportError> {
    let metric = metric_of(records)?;
    let groups = groups(records, &metric);
    let summary = Summary::of_groups(records, &groups, metric);
    let plots = plots::draw(Study {
        summary: &summary,
        groups: &groups,
    })?;
    let view = View::of(records, &summary, &groups, &plots);
    // All is built before anything is written: an error leaves the earlier report as it was.
    let mut files = vec![
        (out.join("runs.csv"), runs_csv(records)?),
        (out.join("REPORT.md"), page::markdown(&view)?.into_bytes()),
        (out.join("report.html"), page::html(&view)?.into_bytes()),
    ];
    let folder = out.join("plots");
    for plot in &plots.drawn {
        files.push((
            folder.join(format!("{}.svg", plot.name)),
            plot.svg.clone().into_bytes(),
        ));
        files.push((folder.join(format!("{}.png", plot.name)), plot.png.clone()));
    }
    for (path, bytes) in &files {
        atomic::replace(path, bytes)?;
    }
    remove_stale(&folder, &plots)?;
    let skipped = plots
        .skipped
        .into_iter()
        .map(|(name, why)| (name.to_owned(), why))
        .collect();
    let files = files.into_iter().map(|(path, _)| path).collect();
    Ok(Report {
        summary,
        files,
        skipped,
    })
}

/// Removes plots of an earlier report that these records no longer allow: they would mislead.
fn remove_stale(folder: &Path, plots: &Plots) -> Result<(), ReportError> {
    for (name, _) in &plots.skipped {
        for extension in ["svg", "png"] {
            let path = folder.join(format!("{name}.{extension}"));
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(ReportError::io("remove", &path)(e));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{diverged, failed, record};

    fn two_rates() -> [Record; 2] {
        [1e-3, 1e-4].map(|rate| record("LoRA r8", rate, 1, 0.9, 0.9))
    }

    fn two_sizes_and_rates() -> Vec<Record> {
        let larger = record("LoRA r16", 1e-3, 1, 0.9, 0.9);
        two_rates().into_iter().chain([larger]).collect()
    }

    #[test]
    fn a_report_is_a_folder_of_tables_pages_and_plots() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep/report");
        let records = two_sizes_and_rates();
        let report = write_report(&records, &out).unwrap();
        for name in [
            "runs.csv",
            "REPORT.md",
            "report.html",
            "plots/heat.svg",
            "plots/heat.png",
        ] {
            let path = out.join(name);
            assert!(report.files.contains(&path), "{name}");
            assert!(fs::metadata(&path).unwrap().len() > 100, "{name}");
        }
        assert_eq!(report.skipped, []);
        let left: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 4, "{left:?}");
    }

    #[test]
    fn a_plot_that_can_no_longer_be_drawn_is_removed_with_a_note() {
        let dir = tempfile::tempdir().unwrap();
        let both = two_rates();
        write_report(&both, dir.path()).unwrap();
        let heat = dir.path().join("plots/heat.png");
        assert!(heat.exists());
        let report = write_report(&both[..1], dir.path()).unwrap();
        assert!(!heat.exists());
        assert!(
            report.to_string().contains("plot `heat` is missing"),
            "{report}"
        );
    }

    #[test]
    fn failures_alone_make_a_report_and_no_records_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let report = write_report(&[failed("LoRA", 1e-3, 1, diverged())], dir.path()).unwrap();
        assert_eq!(report.files.len(), 3);
        assert!(matches!(
            write_report(&[], dir.path()),
            Err(ReportError::NoRecords)
        ));
    }

    #[test]
    fn the_same_records_give_the_same_files() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let records = two_rates();
        let first = write_report(&records, a.path()).unwrap();
        write_report(&records, b.path()).unwrap();
        for path in first.files {
            let other = b.path().join(path.strip_prefix(a.path()).unwrap());
            assert_eq!(
                fs::read(&path).unwrap(),
                fs::read(other).unwrap(),
                "{}",
                path.display()
            );
        }
    }
}
