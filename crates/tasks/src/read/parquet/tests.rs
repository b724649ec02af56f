use std::path::PathBuf;

use proptest::prelude::*;

use crate::TaskError;
use crate::layout::{Layout, Sample};
use crate::read::{Format, ReadOptions, Table, parse, read, sha256};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/parquet").join(name)
}

fn open(name: &str, columns: Option<&[&str]>) -> Result<Table, TaskError> {
    let columns = columns.map(|names| names.iter().map(ToString::to_string).collect());
    let options = ReadOptions {
        format: None,
        columns,
    };
    read(&file(name), &options)
}

fn message(name: &str, columns: Option<&[&str]>) -> String {
    open(name, columns).unwrap_err().to_string()
}

fn expected(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(file("rows.json")).unwrap();
    let rows: Value = serde_json::from_str(&text).unwrap();
    rows[name].as_array().unwrap().clone()
}

/// Single precision has seven digits, which Python writes in double precision.
fn same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            a.keys().eq(b.keys()) && a.iter().all(|(key, value)| same(value, &b[key]))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() => {
            (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-6
        }
        _ => found == expected,
    }
}

#[test]
fn the_rows_are_those_that_were_written_whatever_the_compression() {
    for (name, key) in [
        ("chats", "chats"),
        ("mixed", "mixed"),
        ("gzip", "mixed"),
        ("lz4", "mixed"),
    ] {
        let table = open(&format!("{name}.parquet"), None).unwrap();
        let expected = expected(key);
        let short = ["gzip", "lz4"].contains(&name);
        assert_eq!(table.rows.len(), if short { 3 } else { expected.len() });
        for (index, (row, expected)) in table.rows.iter().zip(&expected).enumerate() {
            assert_eq!(row.line, index + 1);
            let found = Value::Object(row.fields.clone());
            assert!(same(&found, expected), "{name}: {found} for {expected}");
        }
    }
}

#[test]
fn a_chat_reads_as_from_any_other_file() {
    let table = open("chats.parquet", None).unwrap();
    let Sample::Chat(turns) = Layout::Messages.sample(&table, &table.rows[2]).unwrap() else {
        panic!("a chat was expected")
    };
    assert_eq!(turns.len(), 6);
    assert_eq!(turns[5].content, "4, naïvely 漢字");
}

#[test]
fn the_hash_is_that_of_the_file_and_bytes_in_memory_read_alike() {
    let bytes = std::fs::read(file("mixed.parquet")).unwrap();
    let table = open("mixed.parquet", None).unwrap();
    assert_eq!(table.sha256, sha256(&bytes));
    let again = parse(&file("mixed.parquet"), &bytes, Format::Parquet, None).unwrap();
    assert_eq!(again, table);
}

#[test]
fn only_the_columns_asked_for_are_read() {
    let table = open("blob.parquet", Some(&["text"])).unwrap();
    assert_eq!(table.rows[1].fields.keys().collect::<Vec<_>>(), ["text"]);
    let message = message("blob.parquet", Some(&["txt"]));
    assert!(
        message.ends_with("row 1: no column `txt`; the columns are `text`, `image`"),
        "{message}"
    );
}

#[test]
fn what_json_cannot_hold_is_refused_with_its_row() {
    let blob = message("blob.parquet", None);
    assert!(
        blob.contains("blob.parquet` row 1: column `image` holds bytes"),
        "{blob}"
    );
    let nan = message("nan.parquet", None);
    assert!(nan.contains("nan.parquet` row 2: column `x`"), "{nan}");
}

#[test]
fn errors_about_a_row_count_rows_and_not_lines() {
    let table = open("mixed.parquet", None).unwrap();
    let message = Layout::PromptCompletion
        .sample(&table, &table.rows[6])
        .unwrap_err();
    assert!(message.to_string().contains("row 7 has no field `prompt`"));
}

#[test]
fn what_is_no_parquet_file_is_an_error() {
    for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", b"a,b\n1,2\n", &[0; 64]] {
        let error = parse(&file("x.parquet"), bytes, Format::Parquet, None).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("x.parquet` row 1: "), "{message}");
        assert!(message.contains("expected"), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn no_damage_makes_the_reader_panic(
        which in 0..3usize,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let name = ["chats.parquet", "lz4.parquet", "gzip.parquet"][which];
        let mut bytes = std::fs::read(file(name)).unwrap();
        for (index, byte) in edits {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            let at = cut.index(bytes.len());
            bytes.drain(at..(at + 7).min(bytes.len()));
        }
        match parse(&file(name), &bytes, Format::Parquet, None) {
            Ok(table) => prop_assert!(!table.rows.is_empty()),
            Err(error) => prop_assert!(error.to_string().contains(name)),
        }
    }
}
