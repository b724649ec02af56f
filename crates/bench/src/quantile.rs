//! Quantiles of timings.

/// The value below which a share `q` of the values lies, by the nearest one; 0 where there is none.
/// The values are sorted.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * q).round() as usize;
    sorted.get(place).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [1.0, 2.0, 4.0, 8.0];
        let found = [0.0, 0.5, 0.95, 1.0].map(|q| quantile(&values, q));
        assert_eq!(found, [1.0, 4.0, 8.0, 8.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
