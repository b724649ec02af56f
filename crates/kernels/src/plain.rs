//! The operations of this crate written with ordinary tensor operations, differentiated by Burn.
//!
//! They define what the fused forms must compute: the tests compare values and gradients against
//! them, and the `fused` benchmark times the fused forms against them.

use crate::AttentionSpec;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData, activation};

/// `x W + b`, see [`crate::linear`].
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let d_in = dims[D - 1];
    let rows = dims[..D - 1].iter().product();
    dims[D - 1] = weight.dims()[1];
    let mut y = x.reshape([rows, d_in]).matmul(weight);
    if let Some(bias) = bias {
        y = y + bias.unsqueeze();
    }
    y.reshape(dims)
}

/// Exact GELU, see [`crate::gelu`].
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cdf = (x.clone() * core::f64::consts::FRAC_1_SQRT_2).erf() * 0.5 + 0.5;
    x * cdf
}

/// Tanh GELU, see [`crate::gelu_tanh`].
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let cube = x.clone() * x.clone() * x.clone();
    let inner = (x.clone() + cube * 0.044715) * (2.0 / core::f64::consts::PI).sqrt();
    x * (inner.tanh() * 0.5 + 0.5)
}

/// Layer normalisation over the last dimension, see [`crate::layer_norm`].
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = (centred.clone() * centred.clone()).mean_dim(D - 1);
    centred / (variance + eps).sqrt() * gamma.unsqueeze() + beta.unsqueeze()
}

/// Normalisation by the root mean square, see [`crate::rms_norm`].
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, eps: f64) -> Tensor<D> {
    let square = (x.clone() * x.clone()).mean_dim(D - 1);
    x / (square + eps).sqrt() * gamma.unsqueeze()
}

/// `silu(gate) * up`, see [`crate::silu_gate`].
pub fn silu_gate<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gate.clone() * activation::sigmoid(gate) * up
}

/// Rotary position embedding, see [`crate::rotary`].
pub fn rotary(x: Tensor<3>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<3> {
    let [batch, seq, width] = x.dims();
    let half = cos.dims()[2];
    let x = x.reshape([batch, seq, width / (2 * half), 2 * half]);
    let part = |i: usize| x.clone().narrow(3, i * half, half);
    let (cos, sin) = (cos.unsqueeze_dim::<4>(2), sin.unsqueeze_dim::<4>(2));
    let first = part(0) * cos.clone() - part(1) * sin.clone();
    let second = part(1) * cos + part(0) * sin;
    Tensor::cat(vec![first, second], 3).reshape([batch, seq, width])
}

/// A matrix of circulant blocks, see [`crate::circulant`].
pub fn circulant(kernel: Tensor<3>) -> Tensor<2> {
    let [outputs, inputs, size] = kernel.dims();
    let block = |m: usize, n: usize| {
        let own = kernel
            .clone()
            .slice([m..m + 1, n..n + 1])
            .reshape([1, size]);
        // Row `s` is the kernel from its element `s` on, backwards.
        let rows = (0..size).map(|s| own.clone().flip([1]).roll_dim(s as i64 + 1, 1));
        Tensor::cat(rows.collect(), 0)
    };
    let rows = |n| Tensor::cat((0..outputs).map(|m| block(m, n)).collect(), 1);
    Tensor::cat((0..inputs).map(rows).collect(), 0)
}

/// The real part of a Fourier transform by its definition, see [`crate::real_dft2`].
pub fn real_dft2(x: Tensor<2>) -> Tensor<2> {
    let [m, n] = x.dims();
    let waves: Vec<f64> = (0..m * n)
        .flat_map(|to| (0..m * n).map(move |from| (to / n * (from / n), to % n * (from % n))))
        .map(|(rows, columns)| rows as f64 / m as f64 + columns as f64 / n as f64)
        .map(|turns| (core::f64::consts::TAU * turns).cos())
        .collect();
    let waves = TensorData::new(waves, [m * n, m * n]).convert_dtype(x.dtype());
    let waves = Tensor::<2>::from_data(waves, (&x.device(), x.dtype()));
    waves.matmul(x.reshape([m * n, 1])).reshape([m, n])
}

/// Multi-head attention, see [`crate::attention`].
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    spec: &AttentionSpec,
    key_mask: Option<Tensor<2>>,
) -> Tensor<3> {
    let [batch, sq, width] = q.dims();
    let sk = k.dims()[1];
    let device = q.device();
    let mut hidden = Tensor::<4, Bool>::full([batch, 1, sq, sk], false, &device);
    if let Some(mask) = key_mask {
        let padding = mask.equal_elem(0).reshape([batch, 1, 1, sk]);
        hidden = hidden.bool_or(padding.expand([batch, 1, sq, sk]));
    }
    if spec.causal {
        // `tril_mask` is true strictly above the diagonal, which is what must not be seen.
        let later = Tensor::<2, Bool>::tril_mask([sq, sk], sk as i64 - sq as i64, &device);
        hidden = hidden.bool_or(later.reshape([1, 1, sq, sk]).expand([batch, 1, sq, sk]));
    }
    if let Some(window) = spec.window {
        let start = sk as i64 - sq as i64 - window as i64;
        let inside = Tensor::<2, Bool>::tril_mask([sq, sk], start, &device);
        let outside = inside.bool_not().reshape([1, 1, sq, sk]);
        hidden = hidden.bool_or(outside.expand([batch, 1, sq, sk]));
    }
    let hidden = hidden.expand([batch, spec.heads, sq, sk]);

    // A finite stand-in for minus infinity: rows that see nothing stay free of NaN.
    let lowest = if q.dtype() == DType::F16 { -6e4 } else { -1e30 };
    let q = split_heads(q, spec.heads, 1);
    let k = split_heads(k, spec.kv_heads, spec.heads / spec.kv_heads);
    let v = split_heads(v, spec.kv_heads, spec.heads / spec.kv_heads);
    let scores = (q.matmul(k.swap_dims(2, 3)) * spec.scale).mask_fill(hidden.clone(), lowest);
    let seen = activation::softmax(scores, 3).mask_fill(hidden, 0.0);
    seen.matmul(v).swap_dims(1, 2).reshape([batch, sq, width])
}

/// `[b, s, heads * dh]` to `[b, heads * repeat, s, dh]`, each head repeated for its group.
fn split_heads(x: Tensor<3>, heads: usize, repeat: usize) -> Tensor<4> {
    let [batch, seq, width] = x.dims();
    let dh = width / heads;
    x.reshape([batch, seq, heads, dh])
        .swap_dims(1, 2)
        .reshape([batch, heads, 1, seq, dh])
        .expand([batch, heads, repeat, seq, dh])
        .reshape([batch, heads * repeat, seq, dh])
}

/// Mean cross entropy of `hidden @ weight`, see [`crate::cross_entropy_head`].
pub fn cross_entropy_head(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    let rows = targets.dims()[0];
    let log_probabilities = activation::log_softmax(hidden.matmul(weight), 1);
    log_probabilities
        .gather(1, targets.reshape([rows, 1]))
        .mean()
        .neg()
}
