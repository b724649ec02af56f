//! Where a trial was run, for its record.

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

use report::record::Environment;
use sha2::{Digest, Sha256};

use crate::source::hex;

/// Describes this process, its machine and the device it was asked to use.
pub fn describe(device: &str) -> Environment {
    Environment {
        version: env!("CARGO_PKG_VERSION").into(),
        commit: env!("PEFT_COMMIT").into(),
        program: program(),
        burn: "0.22.1".into(),
        rustc: env!("PEFT_RUSTC").into(),
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: cpu(),
        device: device.into(),
        threads: rayon::current_num_threads(),
        started: now(),
    }
}

/// Start of the SHA-256 of this program's file, in hex: another build is another program, whatever
/// commit it says. Empty where the file cannot be read.
pub fn program() -> String {
    let hash = std::env::current_exe().and_then(|path| {
        let mut hasher = Sha256::new();
        std::io::copy(&mut File::open(path)?, &mut hasher)?;
        Ok(hex(&hasher.finalize()))
    });
    hash.map_or_else(|_| String::new(), |hash| hash[..12].into())
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(
        || std::env::consts::ARCH.into(),
        |(_, name)| name.trim().into(),
    )
}

/// Now, RFC 3339 in UTC.
fn now() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    rfc3339(seconds)
}

/// Seconds since 1970 as a date, by Hinnant's days-to-civil algorithm.
fn rfc3339(seconds: u64) -> String {
    let (days, time) = (seconds / 86400, seconds % 86400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_across_leap_years() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_767_225_599), "2025-12-31T23:59:59Z");
    }
}
