//! Randomly damaged model folders: each loads or is an error that names a file, without a panic and
//! without more memory than the files call for.

mod common;

use std::cell::Cell;

use burn::tensor::Device;
use common::{copy, load};
use models::{Batch, Side};
use peak_alloc::PeakAlloc;
use peft_core::Adapted;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One change to a file.
#[derive(Clone, Debug)]
enum Damage {
    /// Another byte at a place, from 0 to 1 through the file.
    Byte(f64, u8),
    /// The rest cut off.
    Cut(f64),
    /// Bytes put in.
    Insert(f64, Vec<u8>),
    /// The n-th number of the text replaced.
    Number(usize, &'static str),
    /// Another length of the header.
    Header(u64),
}

const NUMBERS: [&str; 10] = [
    "0",
    "-1",
    "1",
    "3",
    "7",
    "1e999",
    "1e12",
    "18446744073709551615",
    "0.5",
    "null",
];

fn damage() -> impl Strategy<Value = Damage> {
    // Half of the changes in the first tenth, where headers and small files have their structure.
    let place = || prop_oneof![0.0..0.1_f64, 0.0..1.0_f64];
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => place().prop_map(Damage::Cut),
        1 => (place(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        4 => (0..200_usize, prop::sample::select(&NUMBERS[..]))
            .prop_map(|(nth, number)| Damage::Number(nth, number)),
        1 => any::<u64>().prop_map(Damage::Header),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |place: f64| (place * bytes.len() as f64) as usize;
        match self {
            Damage::Byte(place, byte) => {
                let at = at(*place);
                bytes.splice(at..(at + 1).min(bytes.len()), [*byte]);
            }
            Damage::Cut(place) => bytes.truncate(at(*place)),
            Damage::Insert(place, new) => {
                let at = at(*place);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Number(nth, number) => replace_number(bytes, *nth, number),
            Damage::Header(length) => {
                let end = bytes.len().min(8);
                bytes.splice(..end, length.to_le_bytes());
            }
        }
    }
}

/// Replaces the n-th run of digits, counted around if there are fewer.
fn replace_number(bytes: &mut Vec<u8>, nth: usize, number: &str) {
    let is_start = |i: &usize| {
        bytes[*i].is_ascii_digit() && !i.checked_sub(1).is_some_and(|b| bytes[b].is_ascii_digit())
    };
    let starts: Vec<_> = (0..bytes.len()).filter(is_start).collect();
    let Some(start) = starts.get(nth % starts.len().max(1)) else {
        return;
    };
    let digits = bytes[*start..].iter().take_while(|b| b.is_ascii_digit());
    let end = start + digits.count();
    bytes.splice(*start..end, number.bytes());
}

/// Number of damaged folders.
const CASES: u32 = 2000;

#[test]
fn two_thousand_damaged_folders_load_or_say_what_is_wrong() {
    let folder = copy("llama-sharded");
    std::fs::remove_file(folder.path().join("golden.safetensors")).unwrap();
    let files = std::fs::read_dir(folder.path()).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let intact: Vec<_> = files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect();
    let before = MEMORY.current_usage_as_mb();
    let refused = Cell::new(0);
    let check = |(damaged, changes): (usize, Vec<Damage>)| {
        for (i, (file, intact)) in files.iter().zip(&intact).enumerate() {
            let mut bytes = intact.clone();
            if i == damaged {
                changes.iter().for_each(|change| change.apply(&mut bytes));
            }
            std::fs::write(file, bytes).unwrap();
        }
        match load(folder.path()) {
            Ok(loaded) => assert_computes(loaded.model),
            Err(error) => {
                refused.set(refused.get() + 1);
                let (message, folder) = (error.to_string(), folder.path().display().to_string());
                prop_assert!(message.contains(&folder), "names no file: {message}");
            }
        }
        Ok(())
    };
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    // The same inputs in every run.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let inputs = (0..files.len(), prop::collection::vec(damage(), 1..4));
    let outcome = TestRunner::new_with_rng(config, rng).run(&inputs, check);
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let refused = refused.get();
    assert!(
        refused > CASES / 2,
        "only {refused} were refused: the damage is too mild"
    );
    let peak = MEMORY.peak_usage_as_mb();
    assert!(peak - before < 256.0, "{before} MB grew to {peak} MB");
}

/// A model that loads gives logits, whatever they are.
fn assert_computes(host: models::Model) {
    let rows: [&[u32]; 1] = [&[1, 2, 3]];
    let device = Device::flex();
    let batch = Batch::new(&rows, 0, Side::Right, host.positions(), &device);
    let vocab = host.vocab_size();
    let logits = models::logits(&Adapted::plain(host), &batch);
    assert_eq!(logits.dims(), [1, 3, vocab]);
}
