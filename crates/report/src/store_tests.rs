//! What the store promises.

use super::*;
use crate::fixture::{diverged, failed, record};
use crate::record::Status;

fn store() -> (tempfile::TempDir, RecordStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = RecordStore::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_record_comes_back_as_it_was_stored() {
    let (_dir, store) = store();
    let stored = record("LoRA r8", 1e-3, 1, 0.5, 0.25);
    let path = store.append(&stored).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        name,
        format!("lora-r8--lr1e-3--s1--{}.json", &stored.trial.hash[..12])
    );
    assert_eq!(store.load_all().unwrap(), std::slice::from_ref(&stored));
    assert!(store.has(&stored.trial.hash).unwrap());
    assert!(!store.has("0123456789ab").unwrap());
    assert_eq!(store.find(&stored.trial.hash).unwrap(), Some(stored));
}

#[test]
fn a_finished_trial_is_never_recorded_twice() {
    let (_dir, store) = store();
    let first = record("LoRA r8", 1e-3, 1, 0.5, 0.25);
    let path = store.append(&first).unwrap();
    let before = fs::read(&path).unwrap();
    let mut second = first.clone();
    second.budget.trainable += 1;
    let error = store.append(&second).unwrap_err();
    assert!(
        matches!(error, ReportError::AlreadyRecorded { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("`lora-r8--lr1e-3--s1`"),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_retry_is_stored_beside_the_failure_and_stands_for_the_trial() {
    let (_dir, store) = store();
    let first = store
        .append(&failed("LoRA r8", 1e-3, 1, diverged()))
        .unwrap();
    let second = store
        .append(&failed("LoRA r8", 1e-3, 1, diverged()))
        .unwrap();
    let ok = record("LoRA r8", 1e-3, 1, 0.5, 0.25);
    let third = store.append(&ok).unwrap();
    assert!(first.exists() && second.exists() && third.exists());
    assert!(second.to_str().unwrap().ends_with("-2.json"));
    assert!(third.to_str().unwrap().ends_with("-3.json"));
    assert_eq!(store.load_all().unwrap(), std::slice::from_ref(&ok));
    assert_eq!(store.find(&ok.trial.hash).unwrap(), Some(ok.clone()));
    // Another attempt at what ended well, even a failed one, is refused.
    let late = store.append(&failed("LoRA r8", 1e-3, 1, diverged()));
    assert!(matches!(late, Err(ReportError::AlreadyRecorded { .. })));
}

#[test]
fn of_failures_alone_the_newest_is_kept() {
    let (_dir, store) = store();
    store
        .append(&failed("LoRA r8", 1e-3, 1, diverged()))
        .unwrap();
    let newest = failed(
        "LoRA r8",
        1e-3,
        1,
        Status::Oom {
            reason: "killed".into(),
        },
    );
    store.append(&newest).unwrap();
    assert_eq!(store.load_all().unwrap(), [newest]);
}

#[test]
fn records_come_by_first_label_then_learning_rate_then_seed() {
    let (_dir, store) = store();
    // `Zeta` started first, so it leads although it sorts last by name.
    for (label, lr, seed) in [
        ("Alpha", 1e-3, 7),
        ("Zeta", 1e-3, 2),
        ("Zeta", 1e-4, 3),
        ("Zeta", 1e-3, 1),
    ] {
        store.append(&record(label, lr, seed, 0.5, 0.5)).unwrap();
    }
    let order: Vec<_> = store
        .load_all()
        .unwrap()
        .iter()
        .map(|r| (r.trial.label.clone(), r.trial.learning_rate, r.trial.seed))
        .collect();
    let expected = [
        ("Zeta", 1e-4, 3),
        ("Zeta", 1e-3, 1),
        ("Zeta", 1e-3, 2),
        ("Alpha", 1e-3, 7),
    ];
    assert_eq!(
        order,
        expected.map(|(label, lr, seed)| (label.to_owned(), lr, seed))
    );
}

#[test]
fn a_damaged_file_is_named_with_what_to_do() {
    let (_dir, store) = store();
    let path = store
        .append(&record("LoRA r8", 1e-3, 1, 0.5, 0.25))
        .unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = store.load_all().unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(error.contains("run that trial again"), "{error}");
}

#[test]
fn a_newer_format_is_refused_even_where_its_fields_are_unknown() {
    let (_dir, store) = store();
    let path = store.folder().join("new--0123456789ab.json");
    fs::write(&path, r#"{ "schema": 2, "something": "else" }"#).unwrap();
    let error = store.load_all().unwrap_err();
    assert!(
        matches!(
            error,
            ReportError::NewerSchema {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("new--0123456789ab.json"),
        "{error}"
    );
}

#[test]
fn a_score_that_is_not_finite_is_refused_before_a_file_appears() {
    let (_dir, store) = store();
    let bad = record("LoRA r8", 1e-3, 1, f64::NAN, 0.25);
    let error = store.append(&bad).unwrap_err();
    assert!(matches!(error, ReportError::Unstorable { .. }), "{error}");
    assert_eq!(fs::read_dir(store.folder()).unwrap().count(), 0);
}

#[test]
fn what_an_interrupted_write_left_behind_is_passed_over() {
    let (_dir, store) = store();
    fs::write(store.folder().join(".writing-abc"), "{ \"sch").unwrap();
    assert_eq!(store.load_all().unwrap(), []);
}

#[test]
fn an_id_with_a_slash_stays_in_the_folder() {
    let (_dir, store) = store();
    let mut odd = record("LoRA r8", 1e-3, 1, 0.5, 0.25);
    odd.trial.id = "../a/b c".into();
    let path = store.append(&odd).unwrap();
    assert_eq!(path.parent(), Some(store.folder()));
    assert_eq!(store.load_all().unwrap(), [odd]);
}

#[test]
fn a_record_of_another_build_stands_for_the_trial_however_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = RecordStore::open(dir.path()).unwrap();
    let old = record("LoRA r8", 1e-3, 1, 0.5, 0.5);
    let mut new = record("LoRA r8", 1e-3, 1, 0.7, 0.7);
    new.environment.program = "b1".into();
    store.append(&old).unwrap();
    store.append(&new).unwrap();
    assert_eq!(store.find(&old.trial.hash).unwrap(), Some(new.clone()));
    let again = store.append(&new);
    assert!(matches!(again, Err(ReportError::AlreadyRecorded { .. })));
    // The first build again: what stands is that of the second.
    let back = record("LoRA r8", 1e-3, 1, 0.6, 0.6);
    store.append(&back).unwrap();
    assert_eq!(store.find(&old.trial.hash).unwrap(), Some(back));
    let mut newest = failed("LoRA r8", 1e-3, 1, diverged());
    newest.environment.program = "b2".into();
    store.append(&newest).unwrap();
    assert_eq!(store.load_all().unwrap(), [newest]);
}
