//! `peft-bench`: compares PEFT methods from the command line.

use std::process::ExitCode;

use bench::registry::Registry;

fn main() -> ExitCode {
    bench::cli::run(&Registry::builtin())
}
