//! Median times of the fused operations against their plain forms, forward and backward, on the
//! CPU backend `Flex`: `cargo run --release -p kernels --example speed`.

#![allow(clippy::print_stdout)]

use burn::tensor::{Device, Distribution, Int, Tensor};
use kernels::{AttentionSpec, plain};
use std::time::Instant;

const REPEATS: usize = 15;

/// Batches of short sentences and of longer texts: sequences and their length.
const BATCHES: [[usize; 2]; 2] = [[32, 24], [8, 128]];

fn main() {
    println!(
        "{:<42} {:>9} {:>9} {:>7}",
        "forward and backward", "fused", "plain", "ratio"
    );
    for d in [384, 768] {
        for [batch, seq] in BATCHES {
            println!("d = {d}, {batch} x {seq} tokens");
            linears(d, batch, seq);
            element_wise(d, batch, seq);
            attention(d, batch, seq);
        }
    }
    println!("d = 768, vocabulary 50257");
    head(1024);
}

fn linears(d: usize, batch: usize, seq: usize) {
    let x = random([batch, seq, d]).require_grad();
    for (name, d_out, trainable) in [
        ("linear d -> 3d, frozen", 3 * d, false),
        ("linear d -> 4d, frozen", 4 * d, false),
        ("linear d -> 3d, trained", 3 * d, true),
        ("linear d -> 8, trained", 8, true),
    ] {
        let weight = random([d, d_out]).set_require_grad(trainable);
        let bias = random([d_out]).set_require_grad(trainable);
        let run = |f: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>| {
            net(|| f(x.clone(), weight.clone(), Some(bias.clone())))
        };
        show(name, run(kernels::linear), run(plain::linear));
    }
}

fn element_wise(d: usize, batch: usize, seq: usize) {
    let x = random([batch, seq, 4 * d]).require_grad();
    let run = |f: fn(Tensor<3>) -> Tensor<3>| net(|| f(x.clone()));
    show("gelu of 4d", run(kernels::gelu), run(plain::gelu));
    let (fused, plain) = (run(kernels::gelu_tanh), run(plain::gelu_tanh));
    show("gelu_tanh of 4d", fused, plain);

    let x = random([batch, seq, d]).require_grad();
    for (name, trainable) in [("layer_norm, frozen", false), ("layer_norm, trained", true)] {
        let gamma = random([d]).set_require_grad(trainable);
        let beta = random([d]).set_require_grad(trainable);
        let run = |f: fn(Tensor<3>, Tensor<1>, Tensor<1>, f64) -> Tensor<3>| {
            net(|| f(x.clone(), gamma.clone(), beta.clone(), 1e-5))
        };
        show(name, run(kernels::layer_norm), run(plain::layer_norm));
    }
}

fn attention(d: usize, batch: usize, seq: usize) {
    let qkv = random([batch, seq, 3 * d]).require_grad();
    let mask = Tensor::<2>::ones([batch, seq], &qkv.device());
    for (name, causal) in [("attention, causal", true), ("attention, masked", false)] {
        let spec = AttentionSpec {
            heads: d / 64,
            kv_heads: d / 64,
            scale: 0.125,
            causal,
        };
        let mask = (!causal).then(|| mask.clone());
        let part = |i: usize| qkv.clone().narrow(2, i * d, d);
        let fused = || kernels::attention_qkv(qkv.clone(), &spec, mask.clone());
        let composed = || plain::attention(part(0), part(1), part(2), &spec, mask.clone());
        show(name, net(fused), net(composed));
    }
}

fn head(rows: usize) {
    let hidden = random([rows, 768]).require_grad();
    let classes: Vec<i64> = (0..rows as i64).map(|i| i * 37 % 50257).collect();
    let targets = Tensor::<1, Int>::from_data(classes.as_slice(), &hidden.device());
    for (name, trainable) in [("head, frozen", false), ("head, trained", true)] {
        let weight = random([50257, 768]).set_require_grad(trainable);
        let run = |f: fn(Tensor<2>, Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
            let once = || f(hidden.clone(), weight.clone().transpose(), targets.clone());
            median_of(5, || drop(once().backward()))
        };
        show(
            name,
            run(kernels::cross_entropy_head),
            run(plain::cross_entropy_head),
        );
    }
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let device = Device::flex().autodiff();
    Tensor::random(shape, Distribution::Normal(0.0, 0.5), &device)
}

/// Time of an operation and its backward pass, without that of the loss that follows it here.
fn net(run: impl Fn() -> Tensor<3>) -> f64 {
    let loss_alone = run().detach().require_grad();
    median(|| step(run())) - median(|| step(loss_alone.clone()))
}

/// A backward pass whose first gradient is dense, as inside a network.
fn step(y: Tensor<3>) {
    let grad = y.clone().detach();
    drop((y * grad).sum().backward());
}

fn median(run: impl Fn()) -> f64 {
    median_of(REPEATS, run)
}

fn median_of(repeats: usize, run: impl Fn()) -> f64 {
    run();
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = (0..repeats).map(time).collect();
    times.sort_by(f64::total_cmp);
    times[repeats / 2]
}

fn show(name: &str, fused: f64, plain: f64) {
    let ratio = plain / fused;
    println!("  {name:<40} {fused:>6.2} ms {plain:>6.2} ms {ratio:>6.1}x");
}
