//! Numbers for readers: short, with units, never more digits than they are worth.

/// A count with a suffix: `147k`, `81.9M`.
pub(crate) fn count(n: u64) -> String {
    suffixed(n as f64, 1000.0, &["", "k", "M", "G", "T"])
}

/// Bytes in binary units: `3.02 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    suffixed(n as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

/// Seconds as a person says them: `12.3 s`, `4 min 05 s`, `2 h 10 min`.
pub(crate) fn seconds(s: f64) -> String {
    let whole = s.round().max(0.0) as u64;
    match whole {
        0..120 => format!("{s:.1} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// A share in percent with three significant digits: `0.180`, `12.3`, `100`.
pub(crate) fn percent(share: f64) -> String {
    significant(share * 100.0)
}

/// Three significant digits without an exponent.
pub(crate) fn significant(x: f64) -> String {
    // The rounded value decides on the digits: 0.9999 is `1.00`, not `1.000`.
    let rounded: f64 = format!("{x:.2e}").parse().unwrap_or(x);
    let digits = match rounded.abs() {
        a if a >= 100.0 || a == 0.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 => 2,
        a if a >= 0.1 => 3,
        a if a >= 0.01 => 4,
        _ => 5,
    };
    format!("{x:.digits$}")
}

/// A learning rate: `3e-4`, `2.5e-5`.
pub(crate) fn rate(lr: f64) -> String {
    // Six digits hide what a conversion from a 32-bit number may have added.
    let rounded: f64 = format!("{lr:.5e}").parse().unwrap_or(lr);
    format!("{rounded:e}")
}

/// A p-value: never `0`.
pub(crate) fn p_value(p: f64) -> String {
    if p < 0.001 {
        "<0.001".to_owned()
    } else {
        format!("{p:.3}")
    }
}

/// `text` cut to at most `width` characters.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

fn suffixed(x: f64, base: f64, suffixes: &[&str]) -> String {
    // A number that rounds up to the next unit is shown in it: 999,950 is `1.00M`, not `1000k`.
    let rounds_up = |v: f64| v >= base - 0.5;
    let (mut value, mut unit) = (x, 0);
    while rounds_up(value) && unit + 1 < suffixes.len() {
        value /= base;
        unit += 1;
    }
    let number = if unit == 0 {
        format!("{value:.0}")
    } else {
        significant(value)
    };
    format!("{number}{}", suffixes[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_carry_their_unit() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(147_456), "147k");
        assert_eq!(count(999_950), "1.00M");
        assert_eq!(count(81_912_576), "81.9M");
        assert_eq!(bytes(3_221_225_472), "3.00 GiB");
        assert_eq!(seconds(12.34), "12.3 s");
        assert_eq!(seconds(245.0), "4 min 05 s");
        assert_eq!(seconds(7805.0), "2 h 10 min");
        assert_eq!(percent(0.0018), "0.180");
        assert_eq!(p_value(0.0001), "<0.001");
    }

    #[test]
    fn learning_rates_hide_the_noise_of_single_precision() {
        assert_eq!(rate(3e-4), "3e-4");
        assert_eq!(rate(f64::from(3e-4_f32)), "3e-4");
        assert_eq!(rate(2.5e-5), "2.5e-5");
    }

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(cut("Houlsby 16", 10), "Houlsby 16");
        assert_eq!(cut("Houlsby 128", 10), "Houlsby 1…");
    }
}
