//! Files to rows: JSONL, CSV and TSV, told apart by their names.

mod csv;
mod jsonl;
mod tsv;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::TaskError;
use crate::error::listed;

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// RFC 4180: fields in double quotes may hold commas, quotes (doubled) and line ends.
    Csv,
    /// Fields separated by tabs; a quote is a character as any other.
    Tsv,
}

/// How to read a file, where its name and first line do not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadOptions {
    /// The layout; told by the file's name if not given.
    pub format: Option<Format>,
    /// Column names of a CSV or TSV file without a header row.
    pub columns: Option<Vec<String>>,
}

/// One example as its file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Line on which it starts, from 1.
    pub line: usize,
    /// Its fields, in the order of the file.
    pub fields: Map<String, Value>,
}

/// A file's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The file, for messages.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// At least one row.
    pub rows: Vec<Row>,
}

impl Table {
    /// The value of a field as text: a string as it is, a number or a truth value as JSON writes
    /// it.
    ///
    /// # Errors
    /// If the row has no such field, or the field is no single value.
    pub fn text(&self, row: &Row, field: &str) -> Result<String, TaskError> {
        match row.fields.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
            Some(value) => Err(TaskError::File {
                path: self.path.clone(),
                line: row.line,
                reason: format!("field `{field}` is `{value}`; expected a text or a number"),
            }),
            None => Err(self.missing(row, field)),
        }
    }

    /// The error of a field that a row does not have.
    pub(crate) fn missing(&self, row: &Row, field: &str) -> TaskError {
        TaskError::MissingField {
            path: self.path.clone(),
            line: row.line,
            field: field.to_string(),
            known: listed(row.fields.keys().map(String::as_str)),
        }
    }
}

/// Reads a file.
///
/// # Errors
/// If the file cannot be read, its format is unknown, it is not UTF-8, a row is malformed, or
/// there is no row at all; every message names the file, and the line where there is one.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Table, TaskError> {
    let format = match options.format {
        Some(format) => format,
        None => format_of(path)?,
    };
    let bytes = std::fs::read(path).map_err(TaskError::io(path))?;
    parse(path, &bytes, format, options.columns.as_deref())
}

/// Reads a file's contents that are already in memory; `path` is only for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(
    path: &Path,
    bytes: &[u8],
    format: Format,
    columns: Option<&[String]>,
) -> Result<Table, TaskError> {
    let source = Source {
        path,
        text: utf8(path, bytes)?,
    };
    let rows = match format {
        Format::Jsonl => jsonl::rows(&source, columns)?,
        Format::Csv => csv::rows(&source, columns)?,
        Format::Tsv => tsv::rows(&source, columns)?,
    };
    if rows.is_empty() {
        return Err(TaskError::NoRows {
            path: path.to_path_buf(),
        });
    }
    Ok(Table {
        path: path.to_path_buf(),
        sha256: sha256(bytes),
        rows,
    })
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn format_of(path: &Path) -> Result<Format, TaskError> {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" => Ok(Format::Jsonl),
        "csv" => Ok(Format::Csv),
        "tsv" => Ok(Format::Tsv),
        _ => Err(TaskError::UnknownFormat {
            path: path.to_path_buf(),
        }),
    }
}

/// The text without a byte order mark, which spreadsheets like to put in front.
fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, TaskError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = &bytes[..error.valid_up_to()];
        TaskError::File {
            path: path.to_path_buf(),
            line: 1 + good.iter().filter(|&&byte| byte == b'\n').count(),
            reason: "not UTF-8; save the file as UTF-8".to_string(),
        }
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A text and where it is from.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, line: usize, reason: impl Into<String>) -> TaskError {
        TaskError::File {
            path: self.path.to_path_buf(),
            line,
            reason: reason.into(),
        }
    }

    /// A row of texts under their names.
    fn row<'f>(
        &self,
        line: usize,
        columns: &[String],
        fields: impl ExactSizeIterator<Item = &'f str>,
    ) -> Result<Row, TaskError> {
        if fields.len() != columns.len() {
            let reason = format!(
                "{} fields; expected {}: {}",
                fields.len(),
                columns.len(),
                listed(columns.iter().map(String::as_str))
            );
            return Err(self.error(line, reason));
        }
        let fields = columns
            .iter()
            .cloned()
            .zip(fields.map(Value::from))
            .collect();
        Ok(Row { line, fields })
    }

    /// Column names, each of them once.
    fn checked(&self, columns: Vec<String>) -> Result<Vec<String>, TaskError> {
        for (index, column) in columns.iter().enumerate() {
            if columns[..index].contains(column) {
                let reason = format!("column `{column}` is named twice; expected different names");
                return Err(self.error(1, reason));
            }
        }
        Ok(columns)
    }
}

#[cfg(test)]
mod tests {
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
        let (_folder, path) = write("data.json", b"{}");
        let message = read(&path, &ReadOptions::default())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("data.json` does not tell its format"),
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
}
