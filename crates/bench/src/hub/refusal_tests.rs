//! What is refused, and what the errors say.

use std::collections::BTreeMap;

use super::tests::{MODEL, commit, failure, id, names, repository, set_up, sharded};
use super::*;

#[test]
fn an_index_that_leads_out_of_its_folder_is_refused_before_anything_is_asked_for() {
    for shard in [
        "../../secret.safetensors",
        "/etc/x.safetensors",
        "d/b.safetensors",
        "b.bin",
    ] {
        let (server, _cache, hub) = set_up(sharded(shard));
        let error = failure(&hub, Kind::Model);
        assert!(
            error.contains(shard) && error.contains("plain name"),
            "{error}"
        );
        let asked = server.requests();
        assert!(
            !asked
                .iter()
                .any(|path| path.contains("safetensors") && !path.ends_with(".json"))
        );
    }
}

#[test]
fn a_shard_that_the_repository_lacks_is_an_error_that_names_it() {
    let (_server, _cache, hub) = set_up(sharded("lost.safetensors"));
    let error = failure(&hub, Kind::Model);
    assert!(error.contains("`lost.safetensors`"), "{error}");
}

#[test]
fn a_repository_of_pickles_only_is_refused_with_a_way_out() {
    let (_server, _cache, hub) = set_up(repository(&["config.json", "pytorch_model.bin"]));
    let error = failure(&hub, Kind::Model);
    assert!(
        error.contains("`pytorch_model.bin`") && error.contains("safetensors"),
        "{error}"
    );
}

#[test]
fn a_repository_without_a_configuration_is_no_model() {
    let (_server, _cache, hub) = set_up(repository(&["model.safetensors"]));
    let error = failure(&hub, Kind::Model);
    assert!(error.contains("no `config.json`"), "{error}");
}

#[test]
fn a_revision_that_does_not_exist_is_an_error_and_not_looked_for_in_the_cache() {
    let (server, _cache, hub) = set_up(repository(&MODEL));
    hub.fetch(&id(), Kind::Model).unwrap();
    server.change(|answers| answers.statuses = vec![("/revision/main".into(), 404)]);
    let error = failure(&hub, Kind::Model);
    assert!(
        error.contains("404") && error.contains("hf://org/model@main"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_listed_but_not_there_is_an_error_that_names_it() {
    let mut answers = repository(&MODEL);
    answers.statuses = vec![("/tokenizer.json".into(), 404)];
    let (_server, _cache, hub) = set_up(answers);
    let error = failure(&hub, Kind::Model);
    assert!(
        error.contains("`tokenizer.json`") && error.contains("404"),
        "{error}"
    );
}

#[test]
fn a_gated_repository_says_how_to_get_in_and_opens_with_a_token() {
    for path in ["/revision/main", "/model.safetensors"] {
        let mut answers = repository(&MODEL);
        answers.statuses = vec![(path.into(), 401)];
        let (_server, _cache, hub) = set_up(answers);
        let error = failure(&hub, Kind::Model);
        for part in ["gated", "HF_TOKEN", "/org/model", "no token is set"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let wrong = Hub {
            token: Some("wrong".into()),
            ..hub.clone()
        };
        assert!(failure(&wrong, Kind::Model).contains("token in use"));
        let hub = Hub {
            token: Some("secret".into()),
            ..hub
        };
        assert!(hub.fetch(&id(), Kind::Model).is_ok());
    }
}

#[test]
fn a_download_that_never_completes_leaves_no_file_and_no_revision_behind() {
    for hides_length in [false, true] {
        let mut answers = repository(&MODEL);
        answers.breaks = vec![("model.safetensors".into(), 7); 3];
        answers.hides_length = hides_length;
        let (_server, _cache, hub) = set_up(answers);
        let error = failure(&hub, Kind::Model);
        assert!(error.contains("`model.safetensors`"), "{error}");
        assert!(
            !hub.snapshot(&id(), &commit(b'a'))
                .join("model.safetensors")
                .exists()
        );
        assert!(hub.cached(&id(), Kind::Model).is_err());
    }
}

#[test]
fn weights_that_are_not_what_the_hub_announced_are_thrown_away() {
    let mut answers = repository(&MODEL);
    let same_size = vec![0; answers.files["model.safetensors"].len()];
    answers.forged = BTreeMap::from([("model.safetensors".to_string(), same_size)]);
    let (_server, _cache, hub) = set_up(answers);
    let error = failure(&hub, Kind::Model);
    assert!(error.contains("SHA-256"), "{error}");
    assert!(hub.cached(&id(), Kind::Model).is_err());
}

#[test]
fn adapters_of_both_libraries_and_of_this_program_are_fetched() {
    let kinds: [&[&str]; 3] = [
        &["adapter_config.json", "adapter_model.safetensors"],
        &[
            "adapter_config.json",
            "head_config.json",
            "pytorch_adapter.bin",
        ],
        &["adapter.json", "adapter.safetensors"],
    ];
    for files in kinds {
        let (_server, _cache, hub) = set_up(repository(files));
        let folder = hub.fetch(&id(), Kind::Adapter).unwrap().folder;
        assert_eq!(names(&folder), files);
    }
    let (_server, _cache, hub) = set_up(repository(&["adapter_config.json", "adapter_model.bin"]));
    assert!(failure(&hub, Kind::Adapter).contains("`adapter_model.bin`"));
    let (_server, _cache, hub) = set_up(repository(&MODEL));
    assert!(failure(&hub, Kind::Adapter).contains("expected an adapter"));
}
