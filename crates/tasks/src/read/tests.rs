use proptest::prelude::*;

use super::*;

fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn the_name_tells_the_format_and_an_option_overrides_it() {
    let (_folder, path) = write("data.TSV", b"a,b\tc\n1\t2\n");
    let by_name = read(&path, &ReadOptions::default()).unwrap();
    assert_eq!(by_name.rows[0].fields["a,b"], "1");
    let options = ReadOptions {
        format: Some(Format::Csv),
        columns: None,
    };
    let message = read(&path, &options).unwrap_err().to_string();
    assert!(message.contains("expected 2: `a`, `b\tc`"), "{message}");
}

#[test]
fn a_name_without_a_known_ending_is_refused() {
    let (_folder, path) = write("data.txt", b"{}");
    let message = read(&path, &ReadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("data.txt` does not tell its format"),
        "{message}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let message = read(Path::new("no/such.csv"), &ReadOptions::default()).unwrap_err();
    assert!(message.to_string().starts_with("`no/such.csv`: "));
}

#[test]
fn the_hash_is_that_of_the_bytes() {
    let bytes = b"a\nabc\n";
    let table = parse(Path::new("a"), bytes, Format::Tsv, None).unwrap();
    assert_eq!(table.sha256, sha256(bytes));
    // The published test vector of the standard.
    let vector = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256(b"abc"), vector);
}

#[test]
fn bytes_that_are_not_utf8_are_refused_with_their_line() {
    for format in [Format::Jsonl, Format::Csv, Format::Tsv] {
        let message = parse(Path::new("a"), b"{}\n\n\xff\n", format, None).unwrap_err();
        assert!(
            message.to_string().starts_with("`a` line 3: not UTF-8"),
            "{message}"
        );
    }
}

#[test]
fn a_field_that_is_no_single_value_has_no_text() {
    let table = parse(
        Path::new("a"),
        b"{\"x\": [1], \"y\": true}",
        Format::Jsonl,
        None,
    )
    .unwrap();
    assert_eq!(table.text(&table.rows[0], "y").unwrap(), "true");
    let message = table.text(&table.rows[0], "x").unwrap_err().to_string();
    assert_eq!(
        message,
        "`a` line 1: field `x` is `[1]`; expected a text or a number"
    );
    let message = table.text(&table.rows[0], "z").unwrap_err().to_string();
    assert_eq!(
        message,
        "`a` line 1 has no field `z`; its fields are `x`, `y`"
    );
}

#[test]
fn rows_that_are_no_objects_make_no_table() {
    let message = from_rows("made", &[1, 2]).unwrap_err().to_string();
    assert!(message.starts_with("`made` line 1: "), "{message}");
    assert!(matches!(
        from_rows::<u8>("made", &[]),
        Err(TaskError::NoRows { .. })
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        near in "[\"',\\\\{}\\[\\]:\t\r\n a1é\u{feff}]{0,80}",
    ) {
        for bytes in [bytes.as_slice(), near.as_bytes()] {
            for format in [Format::Jsonl, Format::Csv, Format::Tsv] {
                if let Ok(table) = parse(Path::new("a"), bytes, format, None) {
                    let lines = 1 + bytes.iter().filter(|&&byte| byte == b'\n').count();
                    prop_assert!(!table.rows.is_empty());
                    prop_assert!(table.rows.iter().all(|row| (1..=lines).contains(&row.line)));
                    prop_assert!(table.rows.is_sorted_by_key(|row| row.line));
                }
            }
        }
    }

    #[test]
    fn every_table_survives_being_written_as_csv(
        cells in proptest::collection::vec("[a-z\", \n\r\té]{1,8}", 2..20),
    ) {
        let quoted = |cell: &String| format!("\"{}\"", cell.replace('"', "\"\""));
        let text: String = cells.chunks_exact(2)
            .map(|pair| format!("{},{}\n", quoted(&pair[0]), quoted(&pair[1])))
            .collect();
        let columns = ["x".to_string(), "y".to_string()];
        let table = parse(Path::new("a"), text.as_bytes(), Format::Csv, Some(&columns)).unwrap();
        let read: Vec<_> = table.rows.iter()
            .flat_map(|row| [row.fields["x"].as_str(), row.fields["y"].as_str()])
            .flatten()
            .collect();
        let even = cells.len() / 2 * 2;
        prop_assert_eq!(read, cells[..even].iter().map(String::as_str).collect::<Vec<_>>());
    }
}
