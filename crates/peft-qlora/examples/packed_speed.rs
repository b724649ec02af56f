//! Times forward and backward of a packed layer against a frozen dense one.
//!
//! `cargo run --release -p peft-qlora --example packed_speed`

use std::io::Write;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::contract::random;
use peft_core::{Dense, Pass, Proj, Role, Site, Storage};
use peft_qlora::Nf4;

const REPEATS: usize = 15;

fn main() -> std::io::Result<()> {
    let device = Device::flex().autodiff();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:>12} {:>10} {:>10} {:>10} {:>7}",
        "d_in x d_out", "tokens", "dense ms", "nf4 ms", "ratio"
    )?;
    for [d_in, d_out] in [[768, 3072], [3072, 768]] {
        for batch in [[32, 24], [8, 128]] {
            let x = random([batch[0], batch[1], d_in], &device);
            let layer = Dense::new(
                random([d_in, d_out], &device),
                Some(random([d_out], &device)),
            );
            let layer = layer.no_grad();
            let path = "layer".into();
            let site = Site {
                layer: 0,
                role: Role::Up,
                path,
                d_in,
                d_out,
            };
            let packed = Nf4::default()
                .pack(&site, layer.clone())
                .expect("finite weights");
            let [dense_ms, packed_ms] = interleaved(&Proj::new(layer), &packed, &x);
            let (sizes, tokens) = (
                format!("{d_in} x {d_out}"),
                format!("{}x{}", batch[0], batch[1]),
            );
            let ratio = packed_ms / dense_ms;
            writeln!(
                out,
                "{sizes:>12} {tokens:>10} {dense_ms:>10.2} {packed_ms:>10.2} {ratio:>7.3}"
            )?;
        }
    }
    Ok(())
}

/// Median milliseconds of the two layers, measured in turns so that both see the same machine.
fn interleaved(dense: &Proj, packed: &Proj, x: &Tensor<3>) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..REPEATS {
        times[0].push(step(dense, x));
        times[1].push(step(packed, x));
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[REPEATS / 2]
    })
}

fn step(layer: &Proj, x: &Tensor<3>) -> f64 {
    let x = x.clone().detach().require_grad();
    let start = Instant::now();
    let y = layer.forward(x.clone(), &Pass::new());
    let grads = y.sum().backward();
    x.grad(&grads).expect("a gradient of the input");
    start.elapsed().as_secs_f64() * 1e3
}
