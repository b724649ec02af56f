use std::collections::HashSet;

use super::*;
use crate::lm::LmEncoder;
use crate::read::{ReadOptions, from_rows, read, sha256};
use crate::tokenizer::train_bpe;

fn scenario(seed: u64) -> Scenario {
    Scenario::generate(seed, &ScenarioConfig::default()).unwrap()
}

fn answers(rows: &[LmRow]) -> HashSet<&str> {
    rows.iter().map(|row| row.completion.as_str()).collect()
}

#[test]
fn a_seed_always_gives_the_same_scenario() {
    assert_eq!(scenario(3), scenario(3));
    assert_ne!(scenario(3).catalogue, scenario(4).catalogue);
}

#[test]
fn the_scenario_of_a_seed_is_pinned() {
    // A change of the generator is a change of every result obtained with it.
    let scenario = scenario(1);
    let hash = |rows| from_rows("", rows).unwrap().sha256[..8].to_string();
    let hashes = [&scenario.train, &scenario.dev, &scenario.test].map(|rows| hash(rows));
    assert_eq!(hashes, ["a9337f5f", "0040cb88", "e6af32e1"]);
    let corpus = scenario.corpus.concat();
    assert_eq!(sha256(corpus.as_bytes())[..8], *"605b179f");
}

#[test]
fn topic_level_and_length_name_one_video() {
    let videos = scenario(1).catalogue;
    let cells: HashSet<_> = videos
        .iter()
        .map(|v| (&v.topic, v.level, v.length))
        .collect();
    let titles: HashSet<_> = videos.iter().map(|v| &v.title).collect();
    let ids: HashSet<_> = videos.iter().map(|v| v.id).collect();
    assert_eq!(videos.len(), ScenarioConfig::default().topics * 6);
    assert_eq!([cells.len(), titles.len(), ids.len()], [videos.len(); 3]);
}

#[test]
fn no_answer_of_one_part_is_asked_for_in_another() {
    let scenario = scenario(1);
    let parts = [&scenario.train, &scenario.dev, &scenario.test].map(|part| answers(part));
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert!(parts[one].is_disjoint(&parts[other]));
    }
    let all: usize = parts.iter().map(HashSet::len).sum();
    assert_eq!(all, scenario.catalogue.len(), "every video is asked for");
}

#[test]
fn no_question_is_asked_twice() {
    let scenario = scenario(1);
    let rows: Vec<_> = [scenario.train, scenario.dev, scenario.test].concat();
    let prompts: HashSet<_> = rows.iter().map(|row| &row.prompt).collect();
    assert_eq!(prompts.len(), rows.len());
}

#[test]
fn the_corpus_never_shows_the_form_of_the_task() {
    for line in scenario(1).corpus {
        let task = ["User likes", "Assistant:", "I recommend '"];
        assert!(!task.iter().any(|form| line.contains(form)), "{line}");
    }
}

#[test]
fn the_corpus_tells_the_facts_of_every_video_many_times() {
    let scenario = scenario(1);
    for video in &scenario.catalogue {
        let address = format!("youtube.com/{}", video.id);
        let told = |line: &&String| {
            line.contains(&address)
                && line.contains(&video.title)
                && line.contains(&video.quality)
                && video
                    .level
                    .words()
                    .iter()
                    .any(|word| line.to_lowercase().contains(word))
                && video.length.words().iter().any(|word| line.contains(word))
        };
        let times = scenario.corpus.iter().filter(told).count();
        assert!(times >= 40, "{} is told {times} times", video.title);
    }
}

#[test]
fn every_sentence_is_finished_english() {
    let scenario = scenario(1);
    let prompts = scenario
        .train
        .iter()
        .chain(&scenario.test)
        .map(|row| &row.prompt);
    for text in scenario.corpus.iter().chain(prompts) {
        for bad in [
            "{", "}", "a(n)", "A(n)", " a a", " a e", " a i", " a o", " an b", " an l", "  ",
        ] {
            assert!(!text.contains(bad), "`{bad}` in `{text}`");
        }
        assert!(text.ends_with(['.', ':', '?']), "{text}");
    }
}

#[test]
fn a_change_of_one_size_leaves_the_other_parts_as_they_were() {
    let other = ScenarioConfig {
        sentences: 10,
        ..ScenarioConfig::default()
    };
    let (one, other) = (scenario(1), Scenario::generate(1, &other).unwrap());
    assert_eq!((one.catalogue, one.test), (other.catalogue, other.test));
}

#[test]
fn sizes_that_cannot_be_met_are_refused() {
    for topics in [0, 25] {
        let config = ScenarioConfig {
            topics,
            ..ScenarioConfig::default()
        };
        let message = Scenario::generate(1, &config).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("a scenario of {topics} topics; expected 1 to 24")
        );
    }
    let config = ScenarioConfig {
        topics: 1,
        dev: 100_000,
        ..ScenarioConfig::default()
    };
    let message = Scenario::generate(1, &config).unwrap_err().to_string();
    assert!(
        message.starts_with("dev asks for 100000 different questions"),
        "{message}"
    );
}

#[test]
fn the_files_written_make_examples_that_fit() {
    let scenario = scenario(1);
    let folder = tempfile::tempdir().unwrap();
    scenario.write(folder.path()).unwrap();
    let corpus = std::fs::read_to_string(folder.path().join("corpus.txt")).unwrap();
    assert!(
        corpus
            .lines()
            .eq(scenario.corpus.iter().map(String::as_str))
    );
    assert!(corpus.len() < 1_600_000, "{} bytes", corpus.len());
    let tokenizer = train_bpe(&scenario.corpus, VOCABULARY).unwrap();
    let encoder = LmEncoder::new(lm_config(), &tokenizer, 0, None).unwrap();
    for (name, rows) in [("train", &scenario.train), ("test", &scenario.test)] {
        let path = folder.path().join(format!("{name}.jsonl"));
        let data = encoder
            .encode(&read(&path, &ReadOptions::default()).unwrap())
            .unwrap();
        assert_eq!(data.truncated, 0);
        assert_eq!(
            data,
            encoder.encode(&from_rows(name, rows).unwrap()).unwrap()
        );
        let texts = data
            .examples
            .iter()
            .map(|e| (&e.prompt_text, &e.completion_text));
        assert!(texts.eq(rows.iter().map(|row| (&row.prompt, &row.completion))));
    }
}
