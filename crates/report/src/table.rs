//! The summary as plain text for a terminal.

use std::fmt;

use crate::format::{bytes, count, cut, p_value, percent, rate, significant};
use crate::summary::{Row, Summary};

/// Width of the label column at most; the rest of the columns fill up to 100.
const LABEL_WIDTH: usize = 22;

impl Summary {
    /// The table of the summary, at most 100 columns wide, best label first.
    #[must_use]
    pub fn to_table(&self) -> String {
        let unit = if self.metric.is_fraction() { "%" } else { "" };
        let score = format!("{}{unit}", cut(&self.metric.title(), 14));
        let header = [
            "label",
            &score,
            "n",
            "lr",
            "params",
            "%",
            "ms/step",
            "tok/s",
            "peak",
            "p vs best",
        ];
        let mut lines = vec![header.map(str::to_owned)];
        lines.extend(self.ranked().into_iter().map(|row| self.cells(row)));
        aligned(&lines)
    }

    fn cells(&self, row: &Row) -> [String; 10] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let failed = match row.failed {
            0 => String::new(),
            n => format!(" ({n} failed)"),
        };
        let label = cut(&row.label, LABEL_WIDTH.saturating_sub(failed.len()));
        let is_best = self.best.is_some_and(|i| self.rows[i].label == row.label);
        let p = row.versus_best.map(|v| p_value(v.p_holm));
        [
            format!("{label}{failed}"),
            or_dash(row.test.map(|e| self.mean_and_sd(&e))),
            row.test.map_or(0, |e| e.seeds).to_string(),
            or_dash(row.learning_rate.map(rate)),
            or_dash(row.trainable.map(count)),
            or_dash(row.share.map(percent)),
            or_dash(row.step_ms.map(significant)),
            or_dash(row.tokens_per_s.map(|t| count(t.round() as u64))),
            or_dash(row.memory.as_ref().map(|m| bytes(m.measured_peak))),
            if is_best {
                "best".to_owned()
            } else {
                or_dash(p)
            },
        ]
    }

    /// `91.28 ± 0.41`, or the mean alone where there is one seed.
    pub(crate) fn mean_and_sd(&self, e: &crate::stats::Estimate) -> String {
        match e.sd {
            Some(sd) => format!(
                "{} ± {}",
                self.metric.number(e.mean),
                self.metric.number(sd)
            ),
            None => self.metric.number(e.mean),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.study, self.question)?;
        f.write_str(&self.to_table())?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

/// Columns as wide as their widest cell; the first to the left, numbers to the right.
fn aligned(lines: &[[String; 10]]) -> String {
    let width = |c: usize| {
        lines
            .iter()
            .map(|l| l[c].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..10).map(width).collect();
    let line = |cells: &[String; 10]| {
        let cell = |(c, text): (usize, &String)| match c {
            0 => format!("{text:<w$}", w = widths[c]),
            _ => format!("{text:>w$}", w = widths[c]),
        };
        cells
            .iter()
            .enumerate()
            .map(cell)
            .collect::<Vec<_>>()
            .join(" ")
            + "\n"
    };
    let rule = "-".repeat(widths.iter().sum::<usize>() + 9) + "\n";
    let rows: String = lines[1..].iter().map(line).collect();
    format!("{}{rule}{rows}", line(&lines[0]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{diverged, failed, record};

    #[test]
    fn the_table_fits_a_terminal_of_100_columns_and_lists_the_best_first() {
        let long = "Houlsby adapters with a very long label 128";
        let mut records = vec![
            record("LoRA r8", 2.5e-4, 1, 0.9, 0.8),
            record("LoRA r8", 2.5e-4, 2, 0.9, 0.82),
        ];
        records.extend([
            record(long, 1e-3, 1, 0.9, 0.95),
            failed(long, 1e-3, 2, diverged()),
        ]);
        records.push(failed("Full", 1e-3, 2, diverged()));
        for r in &mut records {
            r.time.step_ms_median = 123_456.0;
            r.memory.measured_peak = 123_456_789_012;
        }
        let table = Summary::of(&records).unwrap().to_table();
        let lines: Vec<_> = table.lines().collect();
        assert!(lines.iter().all(|l| l.chars().count() <= 100), "{table}");
        assert_eq!(lines.len(), 5);
        assert!(
            lines[2].starts_with("Houlsby ") && lines[2].contains("(1 failed)"),
            "{table}"
        );
        assert!(lines[2].ends_with("best"), "{table}");
        assert!(lines[3].contains("81.00 ± 1.41"), "{table}");
        assert!(lines[4].starts_with("Full (1 failed)"), "{table}");
    }
}
