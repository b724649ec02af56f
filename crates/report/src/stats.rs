//! Mean, spread and interval over seeds; paired comparison over examples.
//!
//! Paper: Noreen 1989 (sign-flip randomisation); Efron 1979 (bootstrap); Holm 1979.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// Resamples of a paired comparison.
pub(crate) const RESAMPLES: usize = 10_000;
/// Every comparison draws the same resamples, so a report comes out the same each time.
const RESAMPLING_SEED: u64 = 20_251;

/// The mean over seeds and what is known of its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Mean over seeds.
    pub mean: f64,
    /// Sample standard deviation over seeds, from two seeds on.
    pub sd: Option<f64>,
    /// 95% interval of the mean (Student's t), from two seeds on.
    pub interval: Option<(f64, f64)>,
    /// Number of seeds.
    pub seeds: usize,
}

impl Estimate {
    /// The estimate from one value per seed; `None` without any.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let (n, mean) = (values.len(), mean(values)?);
        let sd = (n > 1).then(|| {
            let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
            (squares / (n - 1) as f64).sqrt()
        });
        let interval = sd.and_then(|sd| {
            let t = StudentsT::new(0.0, 1.0, (n - 1) as f64)
                .ok()?
                .inverse_cdf(0.975);
            let half = t * sd / (n as f64).sqrt();
            Some((mean - half, mean + half))
        });
        Some(Self {
            mean,
            sd,
            interval,
            seeds: n,
        })
    }
}

/// How one label's answers differ from the best label's on the same test examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Mean over examples of this label's score minus the best label's.
    pub difference: f64,
    /// 95% percentile-bootstrap interval of the difference.
    pub interval: (f64, f64),
    /// Two-sided p-value of the sign-flip test of no difference.
    pub p: f64,
    /// The p-value after Holm's correction for all labels compared with the best.
    pub p_holm: f64,
    /// Examples compared.
    pub examples: usize,
}

impl Paired {
    /// Compares two labels' scores, one per example in the same order; `None` without examples.
    #[must_use]
    pub fn of(scores: &[f64], best: &[f64]) -> Option<Self> {
        let differences: Vec<f64> = scores.iter().zip(best).map(|(a, b)| a - b).collect();
        let difference = mean(&differences)?;
        let p = sign_flip(&differences);
        let examples = differences.len();
        Some(Self {
            difference,
            interval: bootstrap(&differences),
            p,
            p_holm: p,
            examples,
        })
    }

    /// Whether the difference is real at the 5% level, all comparisons taken together.
    #[must_use]
    pub fn is_significant(&self) -> bool {
        self.p_holm < 0.05
    }
}

/// The mean; `None` without values.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The median; `None` without values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Holm's step-down adjustment of p-values, in their own order.
pub(crate) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max(p[i] * (p.len() - rank) as f64).min(1.0);
        adjusted[i] = largest;
    }
    adjusted
}

/// 95% percentile interval of the mean over resampled examples.
fn bootstrap(differences: &[f64]) -> (f64, f64) {
    let mut random = ChaCha8Rng::seed_from_u64(RESAMPLING_SEED);
    let n = differences.len();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            (0..n)
                .map(|_| differences[below(&mut random, n)])
                .sum::<f64>()
                / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40])
}

/// Two-sided p-value: how often random signs give a sum at least as far from zero.
fn sign_flip(differences: &[f64]) -> f64 {
    // Examples without a difference add nothing under any sign.
    let moved: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let observed = moved.iter().sum::<f64>().abs();
    // Sums that are equal on paper may differ in the last bits.
    let reached = observed - 1e-9 * moved.iter().map(|d| d.abs()).sum::<f64>();
    let mut random = ChaCha8Rng::seed_from_u64(RESAMPLING_SEED);
    let extreme = (0..RESAMPLES).filter(|_| flipped_sum(&moved, &mut random).abs() >= reached);
    // The observed signs count as one of the draws, which keeps the test valid (never `p = 0`).
    (extreme.count() + 1) as f64 / (RESAMPLES + 1) as f64
}

fn flipped_sum(differences: &[f64], random: &mut ChaCha8Rng) -> f64 {
    let flip = |bits: u64, (i, d): (usize, &f64)| if bits >> i & 1 == 1 { -d } else { *d };
    differences
        .chunks(64)
        .map(|chunk| {
            let bits = random.next_u64();
            chunk.iter().enumerate().map(|d| flip(bits, d)).sum::<f64>()
        })
        .sum()
}

/// A random index below `n` (multiply-shift; its bias is below `n / 2^32`).
fn below(random: &mut ChaCha8Rng, n: usize) -> usize {
    ((u64::from(random.next_u32()) * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn three_seeds_give_the_hand_computed_interval() {
        // mean 0.9, sd 0.02, t(0.975, 2) = 4.302653: half width 4.302653 * 0.02 / sqrt 3.
        let e = Estimate::of(&[0.88, 0.90, 0.92]).unwrap();
        close(e.mean, 0.9, 1e-12);
        close(e.sd.unwrap(), 0.02, 1e-12);
        let (low, high) = e.interval.unwrap();
        close(low, 0.9 - 0.049_682_76, 1e-7);
        close(high, 0.9 + 0.049_682_76, 1e-7);
        assert_eq!(e.seeds, 3);
    }

    #[test]
    fn one_seed_has_a_mean_but_no_spread() {
        let e = Estimate::of(&[0.5]).unwrap();
        assert_eq!((e.mean, e.sd, e.interval), (0.5, None, None));
        assert_eq!(Estimate::of(&[]), None);
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn holm_multiplies_by_the_hypotheses_left_and_keeps_the_order() {
        // 0.01 * 4, 0.02 * 3 = 0.06, 0.03 * 2 = 0.06, and 0.04 * 1 is raised to 0.06.
        let adjusted = holm(&[0.04, 0.01, 0.03, 0.02]);
        for (a, b) in adjusted.iter().zip([0.06, 0.04, 0.06, 0.06]) {
            close(*a, b, 1e-12);
        }
    }

    #[test]
    fn equal_answers_are_no_difference_at_all() {
        let p = Paired::of(&[1.0, 0.0, 1.0], &[1.0, 0.0, 1.0]).unwrap();
        assert_eq!((p.difference, p.interval, p.p), (0.0, (0.0, 0.0), 1.0));
        assert!(!p.is_significant());
    }

    #[test]
    fn the_sign_flip_test_agrees_with_the_exact_binomial_one() {
        // Ten discordant examples, nine against one: for scores of 0 and 1 the sign-flip test is
        // McNemar's exact test, p = 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024.
        let (mut worse, mut best) = (vec![1.0; 60], vec![1.0; 60]);
        worse[..9].fill(0.0);
        best[9] = 0.0;
        let p = Paired::of(&worse, &best).unwrap();
        close(p.difference, -8.0 / 60.0, 1e-12);
        close(p.p, 22.0 / 1024.0, 0.005);
        assert!(p.interval.0 < p.difference && p.difference < p.interval.1);
    }

    #[test]
    fn the_bootstrap_interval_is_that_of_the_normal_for_many_examples() {
        // 400 differences of +1 and 600 of 0: mean 0.4, standard error sqrt(0.24 / 1000).
        let differences: Vec<f64> = (0..1000).map(|i| f64::from(i < 400)).collect();
        let (low, high) = bootstrap(&differences);
        let half = 1.959_964 * (0.24_f64 / 1000.0).sqrt();
        close(low, 0.4 - half, 0.002);
        close(high, 0.4 + half, 0.002);
    }
}
