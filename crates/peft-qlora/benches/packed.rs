//! Forward and backward of a packed layer against a frozen dense one, and against decoding the
//! whole weight before a dense product: `cargo bench -p peft-qlora`, and `-- --quick` for a first
//! look.
//!
//! The backward pass starts at the layer's own output, with the dense gradient of ones that Burn
//! starts from, so that no loss is measured with it.

use std::time::Duration;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use criterion::{Criterion, SamplingMode};
use peft_core::contract::random;
use peft_core::{Dense, Pass, Proj, Role, Site, Storage};
use peft_qlora::Nf4;

const THREADS: usize = 2;

/// `d_in` and `d_out` of DistilGPT-2's feed-forward layers.
const SIZES: [[usize; 2]; 2] = [[768, 3072], [3072, 768]];

/// Batches of short sentences and of longer texts: sequences and their length.
const BATCHES: [[usize; 2]; 2] = [[32, 24], [8, 128]];

/// The caller is one of the pool's threads, as in a training run: a caller outside the pool is one
/// thread too many for the cores, and every parallel product would wake others while it sleeps.
fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build_global()
        .expect("no threads are running yet");
    rayon::scope(|_| run());
}

/// Few samples: a layer takes milliseconds, and all of them should take a minute.
fn run() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for sizes in SIZES {
        for batch in BATCHES {
            compare(&mut criterion, sizes, batch);
        }
    }
    criterion.final_summary();
}

fn compare(criterion: &mut Criterion, sizes: [usize; 2], batch: [usize; 2]) {
    let device = Device::flex().autodiff();
    let x = random([batch[0], batch[1], sizes[0]], &device).require_grad();
    let [dense, packed] = layers(sizes, &device);
    let pass = Pass::new();

    let [d_in, d_out] = sizes;
    let name = format!("{d_in} to {d_out}, {} x {} tokens", batch[0], batch[1]);
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    let forms: [(&str, &dyn Fn(Tensor<3>) -> Tensor<3>); 3] = [
        ("packed", &|x| packed.forward(x, &pass)),
        ("dense", &|x| dense.forward(x, &pass)),
        ("unpacked", &|x| {
            kernels::linear(x, packed.weight(&pass), packed.bias())
        }),
    ];
    for (name, form) in forms {
        group.bench_function(name, |bencher| {
            bencher.iter(|| form(x.clone()).backward());
        });
    }
    group.finish();
}

/// The same frozen layer, dense and packed.
fn layers([d_in, d_out]: [usize; 2], device: &Device) -> [Proj; 2] {
    let weight = random([d_in, d_out], device);
    let dense = Dense::new(weight, Some(random([d_out], device))).no_grad();
    let site = Site {
        layer: 0,
        role: Role::Up,
        path: "layer".into(),
        d_in,
        d_out,
    };
    let packed = Nf4::default().pack(&site, dense.clone());
    [Proj::new(dense), packed.expect("finite weights")]
}
