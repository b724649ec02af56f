//! Downloads, the cache and what can go wrong, against a stand-in for the hub.

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::TempDir;

use super::stand_in::{Answers, StandIn};
use super::*;

pub(super) const MODEL: [&str; 4] = [
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "model.safetensors",
];

pub(super) fn commit(digit: u8) -> String {
    char::from(digit).to_string().repeat(40)
}

/// A repository with these files; each holds its own name many times.
pub(super) fn repository(files: &[&str]) -> Answers {
    let content = |name: &&str| (name.to_string(), name.repeat(100).into_bytes());
    Answers {
        name: "org/model".into(),
        commit: commit(b'a'),
        files: files.iter().map(content).collect(),
        ..Answers::default()
    }
}

/// A repository of two shards, and a third that the index does not name.
pub(super) fn sharded(second: &str) -> Answers {
    let mut answers = repository(&["config.json", "a.safetensors", "b.safetensors"]);
    let index = serde_json::json!({ "weight_map": { "x": "a.safetensors", "y": second } });
    let index = index.to_string().into_bytes();
    answers
        .files
        .insert("model.safetensors.index.json".into(), index);
    answers.files.insert("c.safetensors".into(), b"c".to_vec());
    answers
}

fn hub(endpoint: &str, cache: &TempDir) -> Hub {
    Hub {
        endpoint: endpoint.into(),
        cache: cache.path().join("hub"),
        token: None,
        offline: false,
        progress: false,
    }
}

/// A stand-in, an empty cache and a hub that uses both.
pub(super) fn set_up(answers: Answers) -> (StandIn, TempDir, Hub) {
    let server = StandIn::start(answers);
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server.endpoint, &cache);
    (server, cache, hub)
}

pub(super) fn id() -> RepoId {
    "hf://org/model".parse().unwrap()
}

pub(super) fn failure(hub: &Hub, kind: Kind) -> String {
    format!("{:#}", hub.fetch(&id(), kind).unwrap_err())
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> = entries
        .map(name)
        .map(|n| n.into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_download_brings_the_wanted_files_of_one_commit_and_leaves_the_rest() {
    let mut files = MODEL.to_vec();
    files.extend(["README.md", "pytorch_model.bin", "onnx/model.safetensors"]);
    let answers = repository(&files);
    let (_server, _cache, hub) = set_up(answers.clone());
    let snapshot = hub.fetch(&id(), Kind::Model).unwrap();
    assert_eq!(
        snapshot.id.to_string(),
        format!("hf://org/model@{}", commit(b'a'))
    );
    let mut wanted = MODEL.map(String::from);
    wanted.sort();
    assert_eq!(names(&snapshot.folder), wanted);
    for name in MODEL {
        let content = std::fs::read(snapshot.folder.join(name)).unwrap();
        assert_eq!(content, answers.files[name], "{name}");
    }
}

#[test]
fn a_warm_cache_serves_without_the_hub_whether_it_is_forbidden_or_gone() {
    let (server, _cache, hub) = set_up(repository(&MODEL));
    let snapshot = hub.fetch(&id(), Kind::Model).unwrap();
    server.requests();
    let offline = Hub {
        offline: true,
        ..hub.clone()
    };
    assert_eq!(offline.fetch(&id(), Kind::Model).unwrap(), snapshot);
    assert_eq!(hub.fetch(&snapshot.id, Kind::Model).unwrap(), snapshot);
    assert_eq!(server.requests(), [""; 0], "neither may ask the hub");
    drop(server);
    assert_eq!(hub.fetch(&id(), Kind::Model).unwrap(), snapshot);
}

#[test]
fn a_second_run_asks_for_the_commit_only_and_a_new_commit_is_fetched() {
    let (server, _cache, hub) = set_up(repository(&MODEL));
    let first = hub.fetch(&id(), Kind::Model).unwrap();
    server.requests();
    assert_eq!(hub.fetch(&id(), Kind::Model).unwrap(), first);
    assert_eq!(server.requests(), ["/api/models/org/model/revision/main"]);
    server.change(|answers| {
        answers.commit = commit(b'b');
        answers.files.insert("config.json".into(), b"new".to_vec());
    });
    let second = hub.fetch(&id(), Kind::Model).unwrap();
    assert_eq!(
        std::fs::read(second.folder.join("config.json")).unwrap(),
        b"new"
    );
    // The old commit stays what it was.
    assert_eq!(hub.fetch(&first.id, Kind::Model).unwrap(), first);
}

#[test]
fn a_cold_cache_without_the_hub_is_an_error_that_says_what_to_do() {
    let (server, _cache, hub) = set_up(repository(&MODEL));
    drop(server);
    let offline = Hub {
        offline: true,
        ..hub.clone()
    };
    for (hub, cause) in [(&hub, "cannot be downloaded"), (&offline, "HF_HUB_OFFLINE")] {
        let error = failure(hub, Kind::Model);
        let folder = hub.cache.display().to_string();
        for part in ["hf://org/model@main", &folder, cause, "HF_HUB_CACHE"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn a_commit_of_which_the_cache_lacks_a_file_is_not_used_and_the_file_is_named() {
    let (server, _cache, hub) = set_up(sharded("b.safetensors"));
    let snapshot = hub.fetch(&id(), Kind::Model).unwrap();
    drop(server);
    std::fs::remove_file(snapshot.folder.join("b.safetensors")).unwrap();
    let error = failure(&hub, Kind::Model);
    assert!(
        error.contains("`b.safetensors`") && error.contains("missing"),
        "{error}"
    );
}

#[test]
fn a_model_in_shards_comes_with_those_its_index_names() {
    let (_server, _cache, hub) = set_up(sharded("b.safetensors"));
    let folder = hub.fetch(&id(), Kind::Model).unwrap().folder;
    let expected = [
        "a.safetensors",
        "b.safetensors",
        "config.json",
        files::INDEX,
    ];
    assert_eq!(names(&folder), expected);
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    for hides_length in [false, true] {
        let mut answers = repository(&MODEL);
        answers.breaks = vec![("model.safetensors".into(), 700); 2];
        answers.hides_length = hides_length;
        let (_server, _cache, hub) = set_up(answers.clone());
        let folder = hub.fetch(&id(), Kind::Model).unwrap().folder;
        let content = std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(
            content, answers.files["model.safetensors"],
            "{hides_length}"
        );
    }
}

#[test]
fn a_part_that_is_complete_or_too_long_starts_anew() {
    for left in [1700, 5000] {
        let answers = repository(&MODEL);
        let (_server, _cache, hub) = set_up(answers.clone());
        let weights = &answers.files["model.safetensors"];
        assert_eq!(weights.len(), 1700);
        let blobs = hub.folder(&id()).join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        use sha2::Digest;
        let tag = crate::source::hex(&sha2::Sha256::digest(weights));
        std::fs::write(blobs.join(format!("{tag}.part")), vec![0; left]).unwrap();
        let folder = hub.fetch(&id(), Kind::Model).unwrap().folder;
        let content = std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(&content, weights, "{left}");
    }
}

#[test]
fn an_overloaded_hub_is_as_good_as_none() {
    let (server, _cache, hub) = set_up(repository(&MODEL));
    let snapshot = hub.fetch(&id(), Kind::Model).unwrap();
    server.change(|answers| answers.statuses = vec![("/revision/main".into(), 503)]);
    assert_eq!(hub.fetch(&id(), Kind::Model).unwrap(), snapshot);
}

/// The hub of these variables.
fn of(variables: &[(&str, &str)]) -> Hub {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Hub::from_variables(&|name| variables.get(name).map(ToString::to_string)).unwrap()
}

#[test]
fn the_environment_is_read_as_pythons_library_reads_it() {
    let plain = of(&[("HOME", "/h")]);
    assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(!plain.offline && plain.token.is_none());
    let cache = |more: (&str, &str)| of(&[("HOME", "/h"), more]).cache;
    assert_eq!(
        cache(("XDG_CACHE_HOME", "/x")),
        Path::new("/x/huggingface/hub")
    );
    assert_eq!(cache(("HF_HOME", "/y")), Path::new("/y/hub"));
    assert_eq!(cache(("HF_HUB_CACHE", "/z")), Path::new("/z"));
    let set = of(&[
        ("HF_HOME", "/y"),
        ("HF_ENDPOINT", "http://mirror/"),
        ("HF_HUB_OFFLINE", "True"),
        ("HF_TOKEN", " secret\n"),
    ]);
    assert_eq!(
        (set.endpoint.as_str(), set.offline),
        ("http://mirror", true)
    );
    assert_eq!(set.token.as_deref(), Some("secret"));
    let empty = |_: &str| None;
    assert!(Hub::from_variables(&empty).is_err());
}

#[test]
fn the_token_file_stands_in_for_the_variable() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "kept\n").unwrap();
    let home = home.path().to_str().unwrap();
    let token = |more: &[(&str, &str)]| of(&[&[("HF_HOME", home)][..], more].concat()).token;
    assert_eq!(token(&[]).as_deref(), Some("kept"));
    assert_eq!(
        token(&[("HF_HUB_CACHE", "/elsewhere")]).as_deref(),
        Some("kept")
    );
    assert_eq!(token(&[("HF_TOKEN", "given")]).as_deref(), Some("given"));
}
