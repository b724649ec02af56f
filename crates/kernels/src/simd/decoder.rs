//! Rows of the operations that decoders of the Llama family are made of.

#![allow(unsafe_code)]

use super::{Fused, Isa, Portable, exp, reduce};

/// The logistic function.
#[inline(always)]
fn sigmoid<I: Isa>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

multiversion! {
    /// One row of normalisation by the root mean square.
    fn rms_norm_row<I>(x: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) {
        let factor = rms_factor(x, eps);
        for ((y, &x), &gamma) in out.iter_mut().zip(x).zip(gamma) {
            *y = x * factor * gamma;
        }
    }

    /// Gradient of one row of [`rms_norm_row`] for its input.
    fn rms_norm_row_backward<I>(
        x: &[f32], grad: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]
    ) {
        let factor = rms_factor(x, eps);
        // First the gradient of the normalised row, then its part along that row.
        for ((y, &grad), &gamma) in out.iter_mut().zip(grad).zip(gamma) {
            *y = grad * gamma;
        }
        let along = reduce(out, x, |g, x| g * x) / x.len() as f32 * factor * factor;
        for (y, &x) in out.iter_mut().zip(x) {
            *y = factor * I::fma(-x, along, *y);
        }
    }

    /// Adds one row's share of the gradient for gamma.
    fn rms_norm_row_affine<I>(x: &[f32], grad: &[f32], eps: f32, dgamma: &mut [f32]) {
        let factor = rms_factor(x, eps);
        for ((dg, &x), &g) in dgamma.iter_mut().zip(x).zip(grad) {
            *dg = I::fma(g, x * factor, *dg);
        }
    }

    /// Reciprocal root mean square of a row.
    fn rms_factor<I>(x: &[f32], eps: f32) -> f32 {
        1.0 / (reduce(x, x, |x, _| x * x) / x.len() as f32 + eps).sqrt()
    }

    /// Turns every head of one row by the angles of its position.
    fn rotate_row<I>(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
        let half = cos.len();
        for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
            let (first, second) = out.split_at_mut(half);
            let (x, y) = x.split_at(half);
            let angles = cos.iter().zip(sin);
            let places = first.iter_mut().zip(second).zip(x.iter().zip(y));
            for (((a, b), (&x, &y)), (&c, &s)) in places.zip(angles) {
                *a = I::fma(x, c, -(y * s));
                *b = I::fma(y, c, x * s);
            }
        }
    }

    /// `out = silu(gate) * up`.
    fn silu_gate<I>(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((y, &g), &u) in out.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid::<I>(g) * u;
        }
    }

    /// Gradient of [`silu_gate`] for `gate`.
    fn silu_gate_backward_gate<I>(gate: &[f32], up: &[f32], grad: &[f32], out: &mut [f32]) {
        for (((y, &g), &u), &d) in out.iter_mut().zip(gate).zip(up).zip(grad) {
            let s = sigmoid::<I>(g);
            *y = d * u * s * I::fma(g, 1.0 - s, 1.0);
        }
    }
}
