//! Records what built the program, for the environment section of records.

use std::process::Command;

fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success());
    output
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string())
        .unwrap_or_default()
}

/// The commit the program is built from, `-dirty` with local changes; empty without a repository.
fn commit() -> String {
    let head = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]));
    let crates = ["status", "--porcelain", "--untracked-files=no", "--", ".."];
    match (
        head.is_empty(),
        output(Command::new("git").args(crates)).is_empty(),
    ) {
        (true, _) | (false, true) => head,
        (false, false) => format!("{head}-dirty"),
    }
}

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    println!(
        "cargo:rustc-env=PEFT_RUSTC={}",
        output(Command::new(rustc).arg("--version"))
    );
    println!("cargo:rustc-env=PEFT_COMMIT={}", commit());
    println!("cargo:rerun-if-changed=build.rs");
    // The commit, and the sources it may differ from.
    println!("cargo:rerun-if-changed=../../.git/HEAD");
    println!("cargo:rerun-if-changed=../../.git/refs/heads");
    println!("cargo:rerun-if-changed=..");
}
