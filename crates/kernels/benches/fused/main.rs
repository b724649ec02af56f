//! The fused operations against their plain forms, at the sizes of DistilGPT-2 on the CPU backend
//! `Flex`: `cargo bench -p kernels`, and `-- --quick` for a first look.
//!
//! Forward and backward count together. The backward pass starts at the operation's own result, with
//! the dense gradient of ones that Burn starts from: a loss would add its own time to both sides and
//! bring small operations closer together than they are.

mod optimizer;
mod product;

use std::time::Duration;

use burn::tensor::{Device, Distribution, Int, Tensor};
use criterion::{BatchSize, Criterion, SamplingMode};
use kernels::{AttentionSpec, plain};

const THREADS: usize = 2;

const WIDTH: usize = 768;
const HEADS: usize = 12;
const VOCABULARY: usize = 50257;
const BATCH: [usize; 2] = [8, 128];
const ROWS: usize = BATCH[0] * BATCH[1];

/// The caller is one of the pool's threads, as in a training run: a caller outside the pool is one
/// thread too many for the cores, and every parallel product would wake others while it sleeps.
fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build_global()
        .expect("no threads are running yet");
    rayon::scope(|_| run());
}

/// Few samples: an operation takes milliseconds, and all of them should take a few minutes.
fn run() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    linears(&mut criterion);
    low_rank_update(&mut criterion);
    activations(&mut criterion);
    layer_norms(&mut criterion);
    attention(&mut criterion);
    heads(&mut criterion);
    optimizer::adamw(&mut criterion);
    product::products(&mut criterion);
    criterion.final_summary();
}

fn linears(criterion: &mut Criterion) {
    let x = hidden(WIDTH).require_grad();
    for (name, d_out, trainable) in [
        ("linear d to 3d, frozen", 3 * WIDTH, false),
        ("linear d to 4d, frozen", 4 * WIDTH, false),
        ("linear d to 3d, trained", 3 * WIDTH, true),
        ("linear d to 8, trained", 8, true),
    ] {
        let weight = random([WIDTH, d_out]).set_require_grad(trainable);
        let bias = random([d_out]).set_require_grad(trainable);
        let run = |f: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>| {
            f(x.clone(), weight.clone(), Some(bias.clone())).backward()
        };
        let (fused, plain) = (|| run(kernels::linear), || run(plain::linear));
        compare(criterion, name, fused, plain);
    }
}

/// LoRA's second product, added to the output of the frozen layer.
///
/// Each round gets an output of its own, made outside the measured time: the fused form works in
/// place only where nobody else holds it, as in a model.
fn low_rank_update(criterion: &mut Criterion) {
    let output = hidden(3 * WIDTH);
    let x = hidden(8).require_grad();
    let weight = random([8, 3 * WIDTH]).require_grad();
    let plain = |y: Tensor<3>, x, weight| y + plain::linear(x, weight, None);
    let mut group = criterion.benchmark_group("linear_onto 8 to 3d, trained");
    group.sampling_mode(SamplingMode::Flat);
    for (name, form) in [
        ("fused", kernels::linear_onto as fn(_, _, _) -> _),
        ("plain", plain),
    ] {
        group.bench_function(name, |bencher| {
            let own_output = || (output.clone() * 1.0).require_grad();
            let step = |y| form(y, x.clone(), weight.clone()).backward();
            bencher.iter_batched(own_output, step, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn activations(criterion: &mut Criterion) {
    let x = hidden(4 * WIDTH).require_grad();
    let run = |f: fn(Tensor<3>) -> Tensor<3>| f(x.clone()).backward();
    let (fused, plain) = (|| run(kernels::gelu), || run(plain::gelu));
    compare(criterion, "gelu of 4d", fused, plain);
    let (fused, plain) = (|| run(kernels::gelu_tanh), || run(plain::gelu_tanh));
    compare(criterion, "gelu_tanh of 4d", fused, plain);
}

fn layer_norms(criterion: &mut Criterion) {
    let x = hidden(WIDTH).require_grad();
    for (name, trainable) in [("layer_norm, frozen", false), ("layer_norm, trained", true)] {
        let gamma = random([WIDTH]).set_require_grad(trainable);
        let beta = random([WIDTH]).set_require_grad(trainable);
        let run = |f: fn(Tensor<3>, Tensor<1>, Tensor<1>, f64) -> Tensor<3>| {
            f(x.clone(), gamma.clone(), beta.clone(), 1e-5).backward()
        };
        let (fused, plain) = (|| run(kernels::layer_norm), || run(plain::layer_norm));
        compare(criterion, name, fused, plain);
    }
}

fn attention(criterion: &mut Criterion) {
    let qkv = hidden(3 * WIDTH).require_grad();
    let part = |i: usize| qkv.clone().narrow(2, i * WIDTH, WIDTH);
    for (name, causal) in [("attention, causal", true), ("attention, masked", false)] {
        let spec = AttentionSpec {
            heads: HEADS,
            kv_heads: HEADS,
            scale: 0.125,
            causal,
            window: None,
        };
        let mask = (!causal).then(|| Tensor::<2>::ones(BATCH, &qkv.device()));
        let fused = || kernels::attention_qkv(qkv.clone(), &spec, mask.clone()).backward();
        let plain = || plain::attention(part(0), part(1), part(2), &spec, mask.clone()).backward();
        compare(criterion, name, fused, plain);
    }
}

fn heads(criterion: &mut Criterion) {
    let x = random([ROWS, WIDTH]).require_grad();
    let classes: Vec<i64> = (0..ROWS).map(|i| (i * 37 % VOCABULARY) as i64).collect();
    let targets = Tensor::<1, Int>::from_data(classes.as_slice(), &x.device());
    for (name, trainable) in [("head, frozen", false), ("head, trained", true)] {
        let embedding = random([VOCABULARY, WIDTH]).set_require_grad(trainable);
        let run = |f: fn(Tensor<2>, Tensor<2>, Tensor<1, Int>) -> Tensor<1>| {
            f(x.clone(), embedding.clone().transpose(), targets.clone()).backward()
        };
        let (fused, plain) = (
            || run(kernels::cross_entropy_head),
            || run(plain::cross_entropy_head),
        );
        compare(criterion, name, fused, plain);
    }
}

fn hidden(width: usize) -> Tensor<3> {
    random([BATCH[0], BATCH[1], width])
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let device = Device::flex().autodiff();
    Tensor::random(shape, Distribution::Normal(0.0, 0.5), &device)
}

/// Flat sampling: a sample is a round or a few, where Criterion's default of ever longer samples
/// would run the heads for minutes.
fn compare<A, B>(
    criterion: &mut Criterion,
    name: &str,
    mut fused: impl FnMut() -> A,
    mut plain: impl FnMut() -> B,
) {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("fused", |bencher| bencher.iter(&mut fused));
    group.bench_function("plain", |bencher| bencher.iter(&mut plain));
    group.finish();
}
