//! Writes the quickstart scenario and its tokenizer into a folder, for a look or for Python:
//! `cargo run --release -p tasks --example export -- FOLDER SEED`.

use std::path::PathBuf;

use tasks::scenario::{Scenario, ScenarioConfig, VOCABULARY};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: export FOLDER SEED";
    let folder = PathBuf::from(arguments.next().ok_or(usage)?);
    let seed = arguments.next().ok_or(usage)?.parse()?;
    let scenario = Scenario::generate(seed, &ScenarioConfig::default())?;
    scenario.write(&folder)?;
    tasks::tokenizer::train_bpe(&scenario.corpus, VOCABULARY)?
        .save(folder.join("tokenizer.json"), true)
        .map_err(|error| error.to_string())?;
    Ok(())
}
