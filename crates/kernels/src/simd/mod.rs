//! Vector code for the processor at hand, chosen when it runs.
//!
//! Builds target the oldest processor of an architecture. The inner loops are written once, as
//! plain Rust that the compiler vectorises, and compiled three times: for AVX-512, for AVX2 with
//! FMA, and for whatever the build targets.

// Calling a function compiled for more features than the build target is unsafe.
#![allow(unsafe_code)]

/// How a loop body multiplies and adds: in one instruction, or in two where that would be a call.
pub(crate) trait Isa {
    /// `a * b + c`.
    fn fma(a: f32, b: f32, c: f32) -> f32;
}

/// Processors with a fused multiply-add instruction.
pub(crate) struct Fused;

impl Isa for Fused {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Whatever the build targets.
pub(crate) struct Portable;

impl Isa for Portable {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Defines functions that run the version of their body that suits the processor.
///
/// The body is generic over one type parameter implementing [`Isa`].
macro_rules! multiversion {
    ($($(#[$meta:meta])*
       fn $name:ident<$isa:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$isa: Isa>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<Fused>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<Fused>($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("fma")
                {
                    // SAFETY: the processor has every feature the function is compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // Every AArch64 processor fuses; elsewhere `mul_add` could be a library call.
            #[cfg(target_arch = "aarch64")]
            return body::<Fused>($($arg),*);
            #[cfg(not(target_arch = "aarch64"))]
            body::<Portable>($($arg),*)
        }
    )*};
}

/// Partial sums kept side by side so that a reduction vectorises: two AVX-512 registers' worth.
const LANES: usize = 32;

/// `e^x`, within 2 units in the last place; saturates below -87 and above 88. NaN stays NaN.
#[inline(always)]
#[allow(clippy::manual_clamp, clippy::excessive_precision)] // `clamp` hides NaN less cheaply
pub(crate) fn exp<I: Isa>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = I::fma(x, core::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = I::fma(n, -0.693_359_375, x);
    let r = I::fma(n, 2.121_944_4e-4, r);
    // Cephes' minimax polynomial for e^r on [-ln(2)/2, ln(2)/2].
    let mut p = 1.987_569_1e-4;
    p = I::fma(p, r, 1.398_199_9e-3);
    p = I::fma(p, r, 8.333_452e-3);
    p = I::fma(p, r, 4.166_579_6e-2);
    p = I::fma(p, r, 1.666_666_6e-1);
    p = I::fma(p, r, 0.5);
    p = I::fma(p * r, r, r) + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// The error function, within 4e-7; a rational approximation on [-4, 4]. NaN stays NaN.
#[inline(always)]
#[allow(clippy::manual_clamp, clippy::excessive_precision)]
pub(crate) fn erf<I: Isa>(x: f32) -> f32 {
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let s = x * x;
    let mut p = -2.726_142_258_013_06e-10;
    p = I::fma(p, s, 2.770_681_424_959_02e-08);
    p = I::fma(p, s, -2.101_024_020_825_08e-06);
    p = I::fma(p, s, -5.692_506_394_623_46e-05);
    p = I::fma(p, s, -7.349_906_303_268_55e-04);
    p = I::fma(p, s, -2.954_599_808_540_25e-03);
    p = I::fma(p, s, -1.609_603_332_624_15e-02);
    let mut q = -1.456_607_184_649_96e-05;
    q = I::fma(q, s, -2.133_740_552_789_05e-04);
    q = I::fma(q, s, -1.682_826_974_382_03e-03);
    q = I::fma(q, s, -7.373_329_167_204_68e-03);
    q = I::fma(q, s, -1.426_473_905_141_89e-02);
    x * p / q
}

/// Sum of `term` over the elements of two slices of the same length, in [`LANES`] partial sums.
#[inline(always)]
fn reduce(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let (x_parts, x_rest) = x.as_chunks::<LANES>();
    let (y_parts, y_rest) = y.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for (x, y) in x_parts.iter().zip(y_parts) {
        for l in 0..LANES {
            lanes[l] += term(x[l], y[l]);
        }
    }
    let rest = x_rest.iter().zip(y_rest);
    lanes.iter().sum::<f32>() + rest.map(|(&x, &y)| term(x, y)).sum::<f32>()
}

/// Largest of `term` over the elements of two slices, minus infinity if there is none.
#[inline(always)]
fn largest(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    // NaN must win, so that a diverged run is seen to diverge.
    let max = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
    let (x_parts, x_rest) = x.as_chunks::<LANES>();
    let (y_parts, y_rest) = y.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for (x, y) in x_parts.iter().zip(y_parts) {
        for l in 0..LANES {
            lanes[l] = max(lanes[l], term(x[l], y[l]));
        }
    }
    let rest = x_rest.iter().zip(y_rest).map(|(&x, &y)| term(x, y));
    rest.chain(lanes).fold(f32::NEG_INFINITY, max)
}

/// `Φ(x)` and `x φ(x)`, from which both GELU and its derivative follow.
#[inline(always)]
fn gelu_parts<I: Isa>(x: f32) -> (f32, f32) {
    let cdf = I::fma(erf::<I>(x * core::f32::consts::FRAC_1_SQRT_2), 0.5, 0.5);
    let density = exp::<I>(-0.5 * x * x) * 0.398_942_3;
    (cdf, x * density)
}

/// `sqrt(2/π)` and the cubic coefficient of the tanh form.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;

/// `(1 + tanh u) / 2` for the tanh form, as the logistic function of `2u`: exact in both tails.
#[inline(always)]
fn gelu_tanh_gate<I: Isa>(x: f32) -> f32 {
    let u = TANH_SCALE * x * I::fma(TANH_CUBIC * x, x, 1.0);
    1.0 / (1.0 + exp::<I>(-2.0 * u))
}

/// Constants of one step of AdamW.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Share of the first moment that stays.
    pub(crate) keep_first: f32,
    /// Share of the second moment that stays.
    pub(crate) keep_second: f32,
    /// Correction of the second moment's start at zero.
    pub(crate) second_scale: f32,
    pub(crate) epsilon: f32,
    /// Share of the value that the weight decay leaves.
    pub(crate) keep_value: f32,
    /// Learning rate, with the correction of the first moment's start at zero.
    pub(crate) rate: f32,
}

multiversion! {
    /// `out = gelu(x)`.
    fn gelu<I>(x: &[f32], out: &mut [f32]) {
        for (y, &x) in out.iter_mut().zip(x) {
            *y = x * I::fma(erf::<I>(x * core::f32::consts::FRAC_1_SQRT_2), 0.5, 0.5);
        }
    }

    /// `out = grad * gelu'(x)`.
    fn gelu_backward<I>(x: &[f32], grad: &[f32], out: &mut [f32]) {
        for ((y, &x), &g) in out.iter_mut().zip(x).zip(grad) {
            let (cdf, density) = gelu_parts::<I>(x);
            *y = g * (cdf + density);
        }
    }

    /// `out = gelu_tanh(x)`.
    fn gelu_tanh<I>(x: &[f32], out: &mut [f32]) {
        for (y, &x) in out.iter_mut().zip(x) {
            *y = x * gelu_tanh_gate::<I>(x);
        }
    }

    /// `out = grad * gelu_tanh'(x)`.
    fn gelu_tanh_backward<I>(x: &[f32], grad: &[f32], out: &mut [f32]) {
        for ((y, &x), &g) in out.iter_mut().zip(x).zip(grad) {
            let gate = gelu_tanh_gate::<I>(x);
            // d(2u)/dx, and the logistic function's derivative gate (1 - gate).
            let slope = 2.0 * TANH_SCALE * I::fma(3.0 * TANH_CUBIC * x, x, 1.0);
            *y = g * I::fma(x * slope, gate * (1.0 - gate), gate);
        }
    }

    /// `out += row`.
    fn add_assign<I>(out: &mut [f32], row: &[f32]) {
        for (o, &r) in out.iter_mut().zip(row) {
            *o += r;
        }
    }

    /// `x *= factor`.
    fn scale<I>(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }

    /// Sum of the squares.
    fn square_sum<I>(x: &[f32]) -> f32 {
        reduce(x, x, |x, y| x * y)
    }

    /// Mean and reciprocal standard deviation of a row.
    fn row_moments<I>(x: &[f32], eps: f32) -> (f32, f32) {
        let scale = 1.0 / x.len() as f32;
        let mean = reduce(x, x, |x, _| x) * scale;
        let variance = reduce(x, x, |x, _| (x - mean) * (x - mean)) * scale;
        (mean, 1.0 / (variance + eps).sqrt())
    }

    /// One row of layer normalisation.
    fn layer_norm_row<I>(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) {
        let (mean, rstd) = row_moments(x, eps);
        for (((y, &x), &gamma), &beta) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = I::fma((x - mean) * rstd, gamma, beta);
        }
    }

    /// Gradient of one row of layer normalisation for its input.
    fn layer_norm_row_backward<I>(
        x: &[f32], grad: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]
    ) {
        let (mean, rstd) = row_moments(x, eps);
        let scale = 1.0 / x.len() as f32;
        // First the gradient of the normalised row, then its parts along 1 and along that row.
        for ((y, &grad), &gamma) in out.iter_mut().zip(grad).zip(gamma) {
            *y = grad * gamma;
        }
        let mean_g = reduce(out, x, |g, _| g) * scale;
        let mean_gx = reduce(out, x, |g, x| g * (x - mean)) * scale * rstd;
        for (y, &x) in out.iter_mut().zip(x) {
            *y = rstd * (*y - mean_g - (x - mean) * rstd * mean_gx);
        }
    }

    /// Adds one row's share of the gradients for gamma and beta.
    fn layer_norm_row_affine<I>(
        x: &[f32], grad: &[f32], eps: f32, dgamma: &mut [f32], dbeta: &mut [f32]
    ) {
        let (mean, rstd) = row_moments(x, eps);
        for (((dg, db), &x), &g) in dgamma.iter_mut().zip(dbeta).zip(x).zip(grad) {
            *dg = I::fma(g, (x - mean) * rstd, *dg);
            *db += g;
        }
    }

    /// Turns scores into probabilities, in place; `seen[j] == 0` hides an entry.
    ///
    /// Returns the logarithm of the sum of exponentials, plus infinity where nothing is seen.
    fn softmax_row<I>(scores: &mut [f32], seen: &[f32]) -> f32 {
        let seen = &seen[..scores.len()];
        let visible = |score, seen| if seen != 0.0 { score } else { f32::NEG_INFINITY };
        let max = largest(scores, seen, visible);
        if max == f32::NEG_INFINITY {
            scores.fill(0.0);
            return f32::INFINITY;
        }
        for (s, &m) in scores.iter_mut().zip(seen) {
            let e = exp::<I>(*s - max);
            *s = if m != 0.0 { e } else { 0.0 };
        }
        let sum = reduce(scores, scores, |e, _| e);
        let scale = 1.0 / sum;
        for s in scores.iter_mut() {
            *s *= scale;
        }
        max + sum.ln()
    }

    /// Recomputes the probabilities of [`softmax_row`] from the scores and its result.
    fn softmax_row_again<I>(scores: &mut [f32], seen: &[f32], log_sum: f32) {
        for (s, &m) in scores.iter_mut().zip(seen) {
            let e = exp::<I>(*s - log_sum);
            *s = if m != 0.0 { e } else { 0.0 };
        }
    }

    /// Gradient of the softmax for its scores: `scale * p * (dp - Σ p dp)`, in place of `dp`.
    fn softmax_row_backward<I>(p: &[f32], dp: &mut [f32], scale: f32) {
        let dot = reduce(p, dp, |p, d| p * d);
        for (d, &p) in dp.iter_mut().zip(p) {
            *d = scale * p * (*d - dot);
        }
    }

    /// One step of AdamW: new values of a parameter and of the moments of its gradient, in place.
    fn adamw<I>(value: &mut [f32], first: &mut [f32], second: &mut [f32], grad: &[f32], c: &Step) {
        for (((value, first), second), &grad) in value.iter_mut().zip(first).zip(second).zip(grad) {
            *first = I::fma(c.keep_first, *first, (1.0 - c.keep_first) * grad);
            *second = I::fma(c.keep_second, *second, (1.0 - c.keep_second) * (grad * grad));
            let size = (*second * c.second_scale).sqrt() + c.epsilon;
            *value = I::fma(*value, c.keep_value, -c.rate * (*first / size));
        }
    }

    /// Logarithm of the sum of exponentials of a row.
    fn log_sum_exp<I>(row: &[f32]) -> f32 {
        let max = largest(row, row, |v, _| v);
        max + reduce(row, row, |v, _| exp::<I>(v - max)).ln()
    }

    /// `row = scale * exp(row - log_sum)`.
    fn softmax_scaled<I>(row: &mut [f32], log_sum: f32, scale: f32) {
        for v in row.iter_mut() {
            *v = scale * exp::<I>(*v - log_sum);
        }
    }
}

mod decoder;
pub(crate) use decoder::*;

#[cfg(test)]
mod tests;
