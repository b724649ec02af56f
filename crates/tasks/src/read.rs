//! Files to rows: JSON, CSV, TSV and Parquet, told apart by their names.

mod csv;
mod json;
mod parquet;
mod tsv;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::TaskError;
use crate::error::{At, Unit, listed};

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One JSON object a line, or one array of objects over the whole file.
    #[serde(alias = "json")]
    Jsonl,
    /// RFC 4180: fields in double quotes may hold commas, quotes (doubled) and line ends.
    Csv,
    /// Fields separated by tabs; a quote is a character as any other.
    Tsv,
    /// Apache Parquet: texts, numbers, truth values, and lists and structs of them.
    Parquet,
}

/// How to read a file, where its name and first line do not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadOptions {
    /// The layout; told by the file's name if not given.
    pub format: Option<Format>,
    /// Column names of a CSV or TSV file without a header row; the columns to read of a Parquet
    /// file, all where not given.
    pub columns: Option<Vec<String>>,
}

/// One example as its file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Line on which it starts, or its number in a file without lines; from 1.
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
    /// What the rows' places are counted in.
    pub unit: Unit,
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
            Some(value) => {
                let value = shortened(value);
                Err(self.error(
                    row,
                    format!("field `{field}` is `{value}`; expected a text or a number"),
                ))
            }
            None => Err(self.missing(row, field)),
        }
    }

    /// Where a row is.
    #[must_use]
    pub fn at(&self, row: &Row) -> At {
        At {
            path: self.path.clone(),
            unit: self.unit,
            number: row.line,
        }
    }

    /// The error of a row that is not what it should be.
    pub(crate) fn error(&self, row: &Row, reason: impl Into<String>) -> TaskError {
        TaskError::File {
            at: self.at(row),
            reason: reason.into(),
        }
    }

    /// The error of a field that a row does not have.
    pub(crate) fn missing(&self, row: &Row, field: &str) -> TaskError {
        TaskError::MissingField {
            at: self.at(row),
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
    if format == Format::Parquet {
        return parquet::open(path, options.columns.as_deref());
    }
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
    let text = || -> Result<Source<'_>, TaskError> {
        let text = utf8(path, bytes)?;
        Ok(Source { path, text })
    };
    let (unit, rows) = match format {
        Format::Jsonl => (Unit::Line, json::rows(&text()?, columns)?),
        Format::Csv => (Unit::Line, csv::rows(&text()?, columns)?),
        Format::Tsv => (Unit::Line, tsv::rows(&text()?, columns)?),
        Format::Parquet => {
            let copy = bytes::Bytes::copy_from_slice(bytes);
            (Unit::Row, parquet::rows(path, copy, columns)?)
        }
    };
    table(path, sha256(bytes), unit, rows)
}

/// The table of a file's rows, of which there must be one.
fn table(path: &Path, sha256: String, unit: Unit, rows: Vec<Row>) -> Result<Table, TaskError> {
    if rows.is_empty() {
        return Err(TaskError::NoRows {
            path: path.to_path_buf(),
        });
    }
    Ok(Table {
        path: path.to_path_buf(),
        sha256,
        unit,
        rows,
    })
}

/// The table of generated rows: that of the JSONL file they would be written as, its hash too.
/// `name` stands for the file in messages.
///
/// # Errors
/// If there is no row, or a row is no JSON object.
pub fn from_rows<T: Serialize>(name: &str, rows: &[T]) -> Result<Table, TaskError> {
    let path = Path::new(name);
    let mut text = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        serde_json::to_writer(&mut text, row).map_err(|error| TaskError::File {
            at: line_of(path, index + 1),
            reason: error.to_string(),
        })?;
        text.push(b'\n');
    }
    parse(path, &text, Format::Jsonl, None)
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of a text file.
fn line_of(path: &Path, number: usize) -> At {
    At {
        path: path.to_path_buf(),
        unit: Unit::Line,
        number,
    }
}

/// A value for a message; long ones are cut.
pub(crate) fn shortened(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn format_of(path: &Path) -> Result<Format, TaskError> {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" | "json" => Ok(Format::Jsonl),
        "csv" => Ok(Format::Csv),
        "tsv" => Ok(Format::Tsv),
        "parquet" => Ok(Format::Parquet),
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
            at: line_of(path, 1 + good.iter().filter(|&&byte| byte == b'\n').count()),
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
            at: line_of(self.path, line),
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
mod tests;
