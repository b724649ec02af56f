//! JSON objects: one a line, or one array of them over the whole file.

use serde_json::{Map, Value};

use super::{Row, Source};
use crate::TaskError;

pub(super) fn rows(source: &Source, columns: Option<&[String]>) -> Result<Vec<Row>, TaskError> {
    if columns.is_some() {
        let reason = "JSON names its own fields; remove `columns`";
        return Err(source.error(1, reason));
    }
    // No line of a JSONL file starts with a bracket, as its values are objects.
    match source.text.trim_start().starts_with('[') {
        true => array(source),
        false => lines(source),
    }
}

fn lines(source: &Source) -> Result<Vec<Row>, TaskError> {
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

/// Element by element, so that each has its line.
fn array(source: &Source) -> Result<Vec<Row>, TaskError> {
    let mut place = Place {
        text: source.text,
        offset: 0,
        line: 1,
    };
    let wrong = |place: &Place<'_>, what: &str| {
        let found = place.rest().chars().next();
        let found = found.map_or("the end of the file".to_string(), |c| format!("`{c}`"));
        source.error(place.line, format!("{found} where {what} was expected"))
    };
    place.skip_space();
    place.advance(1);
    place.skip_space();
    let mut rows = Vec::new();
    if place.rest().starts_with(']') {
        place.advance(1);
    } else {
        loop {
            place.skip_space();
            if !place.rest().starts_with('{') {
                return Err(wrong(&place, "a JSON object of the array"));
            }
            rows.push(object(source, &mut place)?);
            place.skip_space();
            let next = place.rest().chars().next();
            if !matches!(next, Some(',' | ']')) {
                return Err(wrong(&place, "`,` or `]`"));
            }
            place.advance(1);
            if next == Some(']') {
                break;
            }
        }
    }
    place.skip_space();
    match place.rest().is_empty() {
        true => Ok(rows),
        false => Err(wrong(&place, "the end of the file behind the array")),
    }
}

/// The object that starts here.
fn object(source: &Source, place: &mut Place<'_>) -> Result<Row, TaskError> {
    let mut values =
        serde_json::Deserializer::from_str(place.rest()).into_iter::<Map<String, Value>>();
    let line = place.line;
    match values.next() {
        Some(Ok(fields)) => {
            place.advance(values.byte_offset());
            Ok(Row { line, fields })
        }
        Some(Err(error)) => {
            // The library counts lines from the object on.
            let (line, message) = (line + error.line().max(1) - 1, error.to_string());
            let message = message.split(" at line ").next().unwrap_or(&message);
            let column = error.column();
            Err(source.error(line, format!("{message} at column {column}")))
        }
        None => Err(source.error(line, "the array ends within an object")),
    }
}

/// How far an array is read.
struct Place<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl<'a> Place<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.rest()[..bytes].matches('\n').count();
        self.offset += bytes;
    }

    fn skip_space(&mut self) {
        let space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(space).len());
    }
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

    #[test]
    fn an_array_over_the_whole_file_has_the_line_of_each_object() {
        let text = b"\n[\n {\"a\": 1},\n\n {\"a\":\n 2}, {\"a\": [3]}\n]\n";
        let table = parse(Path::new("a.json"), text, Format::Jsonl, None).unwrap();
        let lines: Vec<_> = table.rows.iter().map(|row| row.line).collect();
        assert_eq!(lines, [3, 5, 6]);
        assert_eq!(table.rows[2].fields["a"][0], 3);
    }

    #[test]
    fn a_damaged_array_is_refused_with_the_line_of_the_damage() {
        for (text, line, reason) in [
            ("[{\"a\": 1}\n{\"a\": 2}]", 2, "`{` where `,` or `]`"),
            ("[{\"a\": 1},\n3]", 2, "`3` where a JSON object"),
            ("[{\"a\": 1},\n]", 2, "`]` where a JSON object"),
            ("[{\"a\":\n\n nul}]", 3, "expected ident at column 5"),
            ("[{\"a\": 1}\n", 2, "the end of the file where `,`"),
            ("[\n{\"a\": 1", 2, "EOF while parsing an object"),
            ("[{\"a\": 1}]\n\n{}", 3, "`{` where the end of the file"),
        ] {
            let message = message(text.as_bytes());
            let start = format!("`a.jsonl` line {line}: {reason}");
            assert!(message.starts_with(&start), "{message} for {text:?}");
        }
        assert!(message(b"[ ]").contains("has no rows"));
    }

    #[test]
    fn deep_nesting_in_an_array_is_an_error_and_no_crash() {
        let bad = format!("[{{\"a\": {}", "[".repeat(100_000));
        assert!(message(bad.as_bytes()).contains("recursion limit"));
    }
}
