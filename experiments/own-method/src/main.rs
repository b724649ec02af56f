//! `peft-bench` with SSF besides: every verb, study key and report works with it.

use std::process::ExitCode;

mod ssf;

fn main() -> ExitCode {
    bench::memory::keep_buffers();
    bench::cli::run(&bench::registry![ssf::Ssf])
}
