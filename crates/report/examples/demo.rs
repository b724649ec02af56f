//! Writes a report of made-up records, to look at the pages and plots without training anything:
//! `cargo run --release -p report --example demo -- FOLDER`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use report::record::{
    Budget, CurvePoint, DataInfo, Environment, MemoryInfo, Prediction, Record, SCHEMA, Sample,
    Size, Status, TimeInfo, TrialInfo,
};

/// A family: name, kind, name of its size, sizes, parameters per unit of size (or in all), its best
/// score, and how it slows training down.
type Family = (
    &'static str,
    &'static str,
    &'static str,
    &'static [u64],
    u64,
    f64,
    f64,
);

const FAMILIES: [Family; 12] = [
    ("Full fine-tuning", "full", "", &[], 81_912_576, 0.913, 1.9),
    ("Head only", "head", "", &[], 1_538, 0.842, 0.45),
    ("BitFit", "bitfit", "", &[], 102_400, 0.894, 0.9),
    ("IA3", "ia3", "", &[], 46_080, 0.889, 1.0),
    ("LoRA", "lora", "rank", &[2, 8, 32, 128], 18_432, 0.911, 1.0),
    (
        "rsLoRA",
        "rslora",
        "rank",
        &[2, 8, 32, 128],
        18_432,
        0.914,
        1.0,
    ),
    (
        "DoRA",
        "dora",
        "rank",
        &[2, 8, 32, 128],
        18_700,
        0.915,
        1.35,
    ),
    (
        "QLoRA NF4",
        "qlora",
        "rank",
        &[2, 8, 32, 128],
        18_432,
        0.908,
        1.1,
    ),
    ("VeRA", "vera", "rank", &[64, 256], 80, 0.896, 1.2),
    (
        "Houlsby",
        "houlsby",
        "bottleneck",
        &[4, 16, 64, 256],
        18_900,
        0.910,
        0.95,
    ),
    (
        "Pfeiffer",
        "pfeiffer",
        "bottleneck",
        &[4, 16, 64, 256],
        9_450,
        0.907,
        0.9,
    ),
    (
        "Compacter",
        "compacter",
        "bottleneck",
        &[16, 64],
        1_100,
        0.898,
        1.25,
    ),
];

const EXAMPLES: usize = 872;
const RATES: [f64; 3] = [1e-4, 3e-4, 1e-3];
const BASE: u64 = 81_912_576;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args()
        .nth(1)
        .ok_or("give the folder to write to")?;
    let mut records = Vec::new();
    for family in &FAMILIES {
        let sizes: Vec<Option<u64>> = match family.3 {
            [] => vec![None],
            sizes => sizes.iter().copied().map(Some).collect(),
        };
        for size in sizes {
            for rate in RATES {
                records.extend((1..=3).map(|seed| record(family, size, rate, seed)));
            }
        }
    }
    let report = report::write_report(&records, &PathBuf::from(folder))?;
    #[allow(clippy::print_stdout, reason = "an example has no writer of its own")]
    {
        print!("{report}");
    }
    Ok(())
}

fn record(family: &Family, size: Option<u64>, rate: f64, seed: u64) -> Record {
    let (name, kind, size_name, _, params, best, slow) = *family;
    let label = size.map_or_else(
        || name.to_owned(),
        |s| format!("{name} {}{s}", &size_name[..1]),
    );
    let id = format!(
        "{}--lr{rate:e}--s{seed}",
        label.to_lowercase().replace(' ', "-")
    );
    let mut random = Random::of(&id);
    // Too small a size and too small a learning rate cost a little; so does too much of either.
    let capacity = size.map_or(0.0, |s| {
        let fit = (s as f64 / if kind == "vera" { 256.0 } else { 32.0 }).log2();
        -0.0022 * fit * fit / 2.0 - if fit < 0.0 { 0.002 * -fit } else { 0.0 }
    });
    let tuned = (rate / if kind == "full" { 1e-4 } else { 4e-4 }).log10();
    let dev = best + capacity - 0.02 * tuned * tuned + 0.0035 * random.normal();
    let test = dev - 0.004 + 0.0035 * random.normal();
    let status = status(kind, size, rate, seed);
    let trained = params * size.unwrap_or(1);
    let ok = status.is_ok();
    Record {
        schema: SCHEMA,
        trial: TrialInfo {
            hash: format!("{:016x}", random.0.next_u64()),
            study: "Which method at which size?".into(),
            question: "Adapters, LoRA or QLoRA: which reaches the best accuracy on SST-2 for the \
                       fewest trained parameters? (made-up records)"
                .into(),
            family: name.into(),
            kind: kind.into(),
            size: size.map(|value| Size {
                name: size_name.into(),
                value,
            }),
            storage: if kind == "qlora" { "nf4" } else { "f32" }.into(),
            learning_rate: rate,
            seed,
            metric: "accuracy".into(),
            higher_is_better: true,
            config: serde_json::json!({ "method": { "kind": kind, "size": size } }),
            id,
            label,
        },
        environment: environment(seed),
        data: data(),
        budget: Budget {
            base: BASE,
            trainable: trained,
            head: 1_538,
            base_bytes: base_bytes(kind),
            adapter_bytes: trained * 4,
        },
        time: time(slow, &mut random),
        memory: memory(kind, trained, &mut random),
        curve: if ok {
            curve(best, rate, &mut random)
        } else {
            Vec::new()
        },
        scores: if ok {
            scores(dev, test)
        } else {
            BTreeMap::new()
        },
        predictions: if ok {
            predictions(test, &mut random)
        } else {
            Vec::new()
        },
        warnings: Vec::new(),
        samples: if ok && seed == 1 {
            samples()
        } else {
            Vec::new()
        },
        status,
    }
}

fn status(kind: &str, size: Option<u64>, rate: f64, seed: u64) -> Status {
    match (kind, size, seed) {
        ("full", ..) if rate > 5e-4 => Status::Diverged {
            reason: format!("loss was NaN at step {}", 40 + seed),
        },
        ("rslora", Some(128), 2) if rate > 5e-4 => Status::Diverged {
            reason: "loss was NaN at step 212".into(),
        },
        ("houlsby", Some(256), 3) => Status::Oom {
            reason: "killed by the system at 6.1 GiB; the limit was 6.0 GiB".into(),
        },
        ("dora", Some(128), 1) if rate < 2e-4 => Status::Timeout {
            reason: "ran past its limit of 1800 s".into(),
        },
        _ => Status::Ok,
    }
}

fn scores(dev: f64, test: f64) -> BTreeMap<String, BTreeMap<String, f64>> {
    let of = |accuracy: f64| {
        BTreeMap::from([
            ("accuracy".to_owned(), accuracy),
            ("f1".to_owned(), accuracy - 0.003),
        ])
    };
    BTreeMap::from([("dev".to_owned(), of(dev)), ("test".to_owned(), of(test))])
}

/// Some examples are hard for every method and some easy, as in life.
fn predictions(test: f64, random: &mut Random) -> Vec<Prediction> {
    let answer = |i: usize| {
        let difficulty = (i * 7919 % EXAMPLES) as f64 / EXAMPLES as f64;
        let right = difficulty + 0.06 * random.normal() < test;
        let word = |positive: bool| if positive { "positive" } else { "negative" };
        let expected = i.is_multiple_of(2);
        Prediction {
            predicted: word(expected == right).into(),
            expected: word(expected).into(),
            score: f64::from(right),
        }
    };
    (0..EXAMPLES).map(answer).collect()
}

fn curve(best: f64, rate: f64, random: &mut Random) -> Vec<CurvePoint> {
    let (steps, start) = (600, 0.69);
    let floor = 0.12 + (0.92 - best) * 4.0;
    let speed = 60.0 / (rate / 3e-4).powf(0.4);
    (1..=steps / 4)
        .map(|i| {
            let step = i * 4;
            let fall = (-(step as f64) / speed).exp();
            let loss = floor + (start - floor) * fall + 0.02 * random.normal();
            CurvePoint {
                step,
                epoch: step as f64 / 300.0,
                train_loss: Some(loss.max(0.01)),
                learning_rate: rate * (1.0 - step as f64 / steps as f64),
                dev: None,
            }
        })
        .collect()
}

fn time(slow: f64, random: &mut Random) -> TimeInfo {
    let step_ms = 2000.0 * slow * (1.0 + 0.02 * random.normal());
    let (steps, tokens) = (600, 600 * 900);
    let train_s = step_ms * steps as f64 / 1000.0;
    TimeInfo {
        train_s,
        eval_s: 60.0,
        look_s: 0.0,
        total_s: train_s + 75.0,
        steps,
        tokens,
        tokens_per_s: tokens as f64 / train_s,
        step_ms_median: step_ms,
        step_ms_p95: step_ms * 1.1,
    }
}

fn memory(kind: &str, trained: u64, random: &mut Random) -> MemoryInfo {
    let adapter = if kind == "full" { 0 } else { trained * 4 };
    let known = base_bytes(kind) + adapter + trained * 12;
    let activations = 1.6 * f64::from(1 << 30) * (1.0 + 0.01 * random.normal());
    MemoryInfo {
        base: base_bytes(kind),
        adapter,
        gradients: trained * 4,
        optimizer: trained * 8,
        predicted_peak: known + (1.5 * f64::from(1 << 30)) as u64,
        measured_peak: known + activations as u64,
    }
}

fn base_bytes(kind: &str) -> u64 {
    if kind == "qlora" {
        BASE * 9 / 16
    } else {
        BASE * 4
    }
}

fn data() -> BTreeMap<String, DataInfo> {
    let of = |name: &str, examples| {
        (
            name.to_owned(),
            DataInfo {
                sha256: format!("{examples:016x}"),
                examples,
            },
        )
    };
    BTreeMap::from([of("train", 6920), of("dev", 872), of("test", EXAMPLES)])
}

fn environment(seed: u64) -> Environment {
    Environment {
        program: String::new(),
        version: "0.1.0".into(),
        commit: "0123abc".into(),
        burn: "0.22.1".into(),
        rustc: "1.95.0".into(),
        os: "linux x86_64".into(),
        cpu: "A processor, 2 cores".into(),
        device: "cpu".into(),
        threads: 2,
        started: format!("2025-01-01T00:00:{seed:02}Z"),
    }
}

fn samples() -> Vec<Sample> {
    let one = |prompt: &str, before: &str| Sample {
        prompt: format!("Review: {prompt}\nSentiment:"),
        expected: "positive".into(),
        before: before.into(),
        after: "positive".into(),
    };
    vec![
        one(
            "a charming and often affecting journey",
            "\n\nThe film is a film of the film <end>",
        ),
        one(
            "it's slow, yet it never bores & always \"lands\"",
            "the best of the best of the",
        ),
    ]
}

/// Random numbers that depend on the trial alone.
struct Random(ChaCha8Rng);

impl Random {
    fn of(id: &str) -> Self {
        let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        Self(ChaCha8Rng::seed_from_u64(
            id.bytes().fold(0xcbf2_9ce4_8422_2325, step),
        ))
    }

    /// Nearly normal: twelve uniform numbers summed.
    fn normal(&mut self) -> f64 {
        (0..12)
            .map(|_| f64::from(self.0.next_u32()) / f64::from(u32::MAX))
            .sum::<f64>()
            - 6.0
    }
}
