//! One JSON object a line.

use serde_json::{Map, Value};

use super::{Row, Source};
use crate::TaskError;

pub(super) fn rows(source: &Source, columns: Option<&[String]>) -> Result<Vec<Row>, TaskError> {
    if columns.is_some() {
        let reason = "JSONL names its own fields; remove `columns`";
        return Err(source.error(1, reason));
    }
    let mut rows = Vec::new();
    for (index, text) in source.text.split('\n').enumerate() {
        let line = index + 1;
        if text.trim().is_empty() {
            continue;
        }
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            // The library counts lines within the text it was given, which is one line.
            let reason = error.to_string().replace(" at line 1 column", " at column");
            source.error(line, format!("{reason}; expected one JSON object a line"))
        })?;
        rows.push(Row { line, fields });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::read::{Format, parse};

    fn message(bytes: &[u8]) -> String {
        parse(Path::new("a.jsonl"), bytes, Format::Jsonl, None)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn rows_keep_their_line_and_their_order_of_fields() {
        let text = b"{\"z\": 1, \"a\": \"x\"}\r\n\n{\"z\": null}";
        let table = parse(Path::new("a.jsonl"), text, Format::Jsonl, None).unwrap();
        let lines: Vec<_> = table.rows.iter().map(|row| row.line).collect();
        assert_eq!(lines, [1, 3]);
        assert_eq!(table.rows[0].fields.keys().collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(table.text(&table.rows[0], "z").unwrap(), "1");
    }

    #[test]
    fn what_is_not_an_object_is_refused_with_its_line() {
        for bad in [
            "[1]",
            "{\"a\": 1} x",
            "{\"a\": }",
            "\"text\"",
            "{\"a\": 1",
            "nul",
        ] {
            let message = message(format!("{{\"a\": 1}}\n{bad}\n").as_bytes());
            assert!(message.starts_with("`a.jsonl` line 2: "), "{message}");
            assert!(
                message.ends_with("expected one JSON object a line"),
                "{message}"
            );
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        let bad = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(message(bad.as_bytes()).contains("recursion limit"));
    }

    #[test]
    fn column_names_are_refused() {
        let columns = ["a".to_string()];
        let result = parse(Path::new("a.jsonl"), b"{}", Format::Jsonl, Some(&columns));
        assert!(result.unwrap_err().to_string().contains("remove `columns`"));
    }
}
