//! `peft-bench` with SSF and AdapterBias besides: every verb, study key and report works with them.

use std::process::ExitCode;

mod adapter_bias;
mod ssf;

fn main() -> ExitCode {
    bench::cli::run(&bench::registry![ssf::Ssf, adapter_bias::AdapterBias])
}
