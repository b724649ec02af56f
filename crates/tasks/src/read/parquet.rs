//! Parquet, row by row: no more than a page of each column is decoded at a time.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::schema::types::Type;
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

use super::{Row, Table, hex, table};
use crate::TaskError;
use crate::error::{At, Unit, listed};

/// Most bytes the rows of a file may take: a few bytes of a damaged or malicious file can claim
/// any number of repeated values.
const MOST_BYTES: usize = 4 << 30;
/// What a value takes beside its text, and a row beside its values.
const OVERHEAD: usize = 64;

/// Reads a file without holding its bytes.
pub(super) fn open(path: &Path, columns: Option<&[String]>) -> Result<Table, TaskError> {
    let io = || TaskError::io(path);
    let mut hasher = Sha256::new();
    std::io::copy(&mut File::open(path).map_err(io())?, &mut hasher).map_err(io())?;
    let rows = rows(path, File::open(path).map_err(io())?, columns)?;
    table(path, hex(&hasher.finalize()), Unit::Row, rows)
}

/// The rows of a file, of the named columns or all of them.
pub(super) fn rows<R: ChunkReader + 'static>(
    path: &Path,
    source: R,
    columns: Option<&[String]>,
) -> Result<Vec<Row>, TaskError> {
    let mut rows = Rows {
        path,
        rows: Vec::new(),
        left: MOST_BYTES,
    };
    // The library checks most of what a damaged file may hold, and panics at the rest.
    match catch_unwind(AssertUnwindSafe(|| rows.read(source, columns))) {
        Ok(result) => result.map(|()| rows.rows),
        Err(_) => Err(rows.error("the file is damaged; expected Parquet")),
    }
}

/// What has been read.
struct Rows<'a> {
    path: &'a Path,
    rows: Vec<Row>,
    /// Bytes that further rows may take.
    left: usize,
}

impl Rows<'_> {
    fn read<R: ChunkReader + 'static>(
        &mut self,
        source: R,
        columns: Option<&[String]>,
    ) -> Result<(), TaskError> {
        let reader = SerializedFileReader::new(source).map_err(|error| self.library(&error))?;
        let schema = reader.metadata().file_metadata().schema();
        let projected = self.projected(schema, columns)?;
        let records = reader
            .get_row_iter(Some(projected))
            .map_err(|error| self.library(&error))?;
        for record in records {
            let record = record.map_err(|error| self.library(&error))?;
            let mut fields = Map::new();
            self.charge(OVERHEAD)?;
            for (name, field) in record.into_columns() {
                let value = self.value(&name, field)?;
                fields.insert(name, value);
            }
            let line = self.rows.len() + 1;
            self.rows.push(Row { line, fields });
        }
        Ok(())
    }

    /// The schema of the columns asked for.
    fn projected(&self, schema: &Type, columns: Option<&[String]>) -> Result<Type, TaskError> {
        let all = schema.get_fields();
        let known = || listed(all.iter().map(|field| field.name()));
        if let Some((_, twice)) = all
            .iter()
            .enumerate()
            .find(|(index, field)| all[..*index].iter().any(|f| f.name() == field.name()))
        {
            let name = twice.name();
            return Err(self.error(format!("column `{name}` is named twice")));
        }
        let fields: Vec<Arc<Type>> = match columns {
            None => all.to_vec(),
            Some(columns) => columns
                .iter()
                .map(|name| {
                    let field = all.iter().find(|field| field.name() == name);
                    field.cloned().ok_or_else(|| {
                        self.error(format!("no column `{name}`; the columns are {}", known()))
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        if fields.is_empty() {
            return Err(self.error("no columns; expected at least one"));
        }
        Type::group_type_builder(schema.name())
            .with_fields(fields)
            .build()
            .map_err(|error| self.library(&error))
    }

    /// A value as JSON has it.
    fn value(&mut self, name: &str, field: Field) -> Result<Value, TaskError> {
        self.charge(OVERHEAD)?;
        Ok(match field {
            Field::Null => Value::Null,
            Field::Bool(value) => value.into(),
            Field::Byte(value) => value.into(),
            Field::Short(value) => value.into(),
            Field::Int(value) | Field::Date(value) | Field::TimeMillis(value) => value.into(),
            Field::Long(value)
            | Field::TimeMicros(value)
            | Field::TimestampMillis(value)
            | Field::TimestampMicros(value) => value.into(),
            Field::UByte(value) => value.into(),
            Field::UShort(value) => value.into(),
            Field::UInt(value) => value.into(),
            Field::ULong(value) => value.into(),
            Field::Float16(value) => self.number(name, f64::from(value.to_f32()))?,
            Field::Float(value) => self.number(name, shortest(value))?,
            Field::Double(value) => self.number(name, value)?,
            Field::Str(text) => self.text(text)?,
            // Older writers do not mark text as such.
            Field::Bytes(bytes) => match String::from_utf8(bytes.data().to_vec()) {
                Ok(text) => self.text(text)?,
                Err(_) => return Err(self.unusable(name, "bytes that are no UTF-8 text")),
            },
            Field::Group(record) => {
                let mut fields = Map::new();
                for (name, field) in record.into_columns() {
                    let value = self.value(&name, field)?;
                    fields.insert(name, value);
                }
                Value::Object(fields)
            }
            Field::ListInternal(list) => {
                let elements = list.elements().iter();
                let values = elements.map(|field| self.value(name, field.clone()));
                Value::Array(values.collect::<Result<_, _>>()?)
            }
            Field::MapInternal(map) => {
                let mut fields = Map::new();
                for (key, field) in map.entries() {
                    let Field::Str(key) = key else {
                        return Err(self.unusable(name, "a map whose keys are no texts"));
                    };
                    fields.insert(key.clone(), self.value(name, field.clone())?);
                }
                Value::Object(fields)
            }
            _ => return Err(self.unusable(name, "a value of a type that JSON does not have")),
        })
    }

    fn text(&mut self, text: String) -> Result<Value, TaskError> {
        self.charge(text.len())?;
        Ok(text.into())
    }

    fn number(&self, name: &str, value: f64) -> Result<Value, TaskError> {
        match Number::from_f64(value) {
            Some(number) => Ok(number.into()),
            None => Err(self.unusable(name, "a number that is not finite")),
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TaskError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.error(format!(
                "the rows up to here take more than {} GiB; name the columns to read in `columns`, \
                 or split the file",
                MOST_BYTES >> 30
            ))),
        }
    }

    fn unusable(&self, name: &str, what: &str) -> TaskError {
        self.error(format!(
            "column `{name}` holds {what}; expected texts, numbers or truth values (name the \
             columns to read in `columns` to leave others out)"
        ))
    }

    fn library(&self, error: &ParquetError) -> TaskError {
        self.error(format!("{error}; expected a Parquet file"))
    }

    /// An error at the row that is being read.
    fn error(&self, reason: impl Into<String>) -> TaskError {
        TaskError::File {
            at: At {
                path: self.path.to_path_buf(),
                unit: Unit::Row,
                number: self.rows.len() + 1,
            },
            reason: reason.into(),
        }
    }
}

/// The double that is written as the float is: 0.1 and not 0.10000000149011612.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests;
