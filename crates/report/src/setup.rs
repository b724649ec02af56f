//! Where and on what the trials of a report were run.

use std::collections::BTreeSet;

use crate::format;
use crate::record::{DataInfo, Record};

/// Where and on what the trials were run; more than one value where they differ.
pub(crate) fn setup(records: &[Record]) -> Vec<(&'static str, String)> {
    let distinct = |value: fn(&Record) -> String| {
        let values: BTreeSet<String> = records
            .iter()
            .map(value)
            .filter(|v| !v.is_empty())
            .collect();
        values.into_iter().collect::<Vec<_>>().join("; ")
    };
    let data = |r: &Record| {
        let split = |(name, d): (&String, &DataInfo)| {
            format!(
                "{name} {} ({})",
                d.examples,
                d.sha256.chars().take(12).collect::<String>()
            )
        };
        r.data.iter().map(split).collect::<Vec<_>>().join(", ")
    };
    let program = |r: &Record| {
        let e = &r.environment;
        let commit = if e.commit.is_empty() {
            String::new()
        } else {
            format!(" ({})", e.commit)
        };
        if e.version.is_empty() {
            String::new()
        } else {
            format!("{}{commit}", e.version)
        }
    };
    let threads = |r: &Record| match r.environment.threads {
        0 => String::new(),
        n => n.to_string(),
    };
    let base = |r: &Record| match r.budget.base {
        0 => String::new(),
        n => format!("{} parameters", format::count(n)),
    };
    [
        ("Device", distinct(|r| r.environment.device.clone())),
        ("Threads", distinct(threads)),
        ("Processor", distinct(|r| r.environment.cpu.clone())),
        ("System", distinct(|r| r.environment.os.clone())),
        ("Program", distinct(program)),
        ("Burn", distinct(|r| r.environment.burn.clone())),
        ("Compiler", distinct(|r| r.environment.rustc.clone())),
        ("Base model", distinct(base)),
        ("Examples (SHA-256)", distinct(data)),
        ("Frozen weights", distinct(|r| r.trial.storage.clone())),
        (
            "Trials",
            match seeds(records) {
                1 => format!("{}, on 1 seed", records.len()),
                seeds => format!("{}, on {seeds} seeds", records.len()),
            },
        ),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .collect()
}

fn seeds(records: &[Record]) -> usize {
    records
        .iter()
        .map(|r| r.trial.seed)
        .collect::<BTreeSet<_>>()
        .len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::record;

    #[test]
    fn what_differs_between_trials_is_listed_and_what_is_unknown_is_left_out() {
        let mut records = [
            record("LoRA r8", 1e-3, 1, 0.5, 0.5),
            record("Full", 1e-3, 2, 0.5, 0.5),
        ];
        records[1].environment.device = "cuda:0".into();
        let setup = setup(&records);
        let value = |name| {
            setup
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v.as_str())
        };
        assert_eq!(value("Device"), Some("cpu; cuda:0"));
        assert_eq!(value("Examples (SHA-256)"), Some("test 4 (ab)"));
        assert_eq!(value("Trials"), Some("2, on 2 seeds"));
        assert_eq!(value("Processor"), None);
    }
}
