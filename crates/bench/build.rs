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

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    println!(
        "cargo:rustc-env=PEFT_RUSTC={}",
        output(Command::new(rustc).arg("--version"))
    );
    println!("cargo:rerun-if-changed=build.rs");
}
