//! Comma separated, quoted as RFC 4180 has it.

use super::{Row, Source};
use crate::TaskError;

pub(super) fn rows(source: &Source, columns: Option<&[String]>) -> Result<Vec<Row>, TaskError> {
    let mut reader = ::csv::ReaderBuilder::new()
        .has_headers(false)
        // Widths are checked here, to name the columns in the message.
        .flexible(true)
        .from_reader(source.text.as_bytes());
    let mut columns = columns
        .map(<[String]>::to_vec)
        .map(|c| source.checked(c))
        .transpose()?;
    let mut rows = Vec::new();
    let (mut last, mut seen) = (1, 0);
    for record in reader.records() {
        let record = record.map_err(|error| source.error(last, error.to_string()))?;
        // The reader's own line numbers lag behind where lines end with `\r\n`, and it takes empty
        // lines for the start of the record behind them.
        let start = record
            .position()
            .map_or(seen, |position| position.byte() as usize);
        let rest = &source.text[start..];
        let start = start + rest.len() - rest.trim_start_matches(['\r', '\n']).len();
        last += source.text[seen..start].matches('\n').count();
        seen = start;
        match &columns {
            None => columns = Some(source.checked(record.iter().map(str::to_string).collect())?),
            Some(columns) => {
                let fields: Vec<&str> = record.iter().collect();
                rows.push(source.row(last, columns, fields.into_iter())?);
            }
        }
    }
    closed(source, last)?;
    Ok(rows)
}

/// A quote that is never closed swallows the rest of the file into one field, and the reader does
/// not mind. Every well-formed file has an even number of quotes.
fn closed(source: &Source, last: usize) -> Result<(), TaskError> {
    let quotes = source.text.bytes().filter(|&byte| byte == b'"').count();
    if quotes % 2 == 0 {
        return Ok(());
    }
    let reason = "a quote is opened and never closed, here or above (the file has an odd number \
                  of `\"`); write a quote inside a quoted field twice";
    Err(source.error(last, reason))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::TaskError;
    use crate::read::{Format, Table, parse};

    fn table(text: &str) -> Result<Table, TaskError> {
        parse(Path::new("a.csv"), text.as_bytes(), Format::Csv, None)
    }

    #[test]
    fn quoted_fields_hold_commas_quotes_and_line_ends() {
        let table = table(
            "mr,ref\r\n\"name[A], area[B]\",\"said \"\"no\"\"\nand left\"\r\nx,y\r\n\r\n\r\nu,v",
        )
        .unwrap();
        assert_eq!(table.rows[0].fields["mr"], "name[A], area[B]");
        assert_eq!(table.rows[0].fields["ref"], "said \"no\"\nand left");
        let lines: Vec<_> = table.rows.iter().map(|row| row.line).collect();
        assert_eq!(lines, [2, 4, 7]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_name() {
        assert!(
            table("\u{feff}a,b\n1,2\n").unwrap().rows[0]
                .fields
                .contains_key("a")
        );
    }

    #[test]
    fn a_row_of_another_width_is_refused_with_its_line() {
        let message = table("a,b\n1,2\n3\n").unwrap_err().to_string();
        assert_eq!(message, "`a.csv` line 3: 1 fields; expected 2: `a`, `b`");
    }

    #[test]
    fn a_quote_that_is_never_closed_is_refused() {
        let message = table("a,b\n1,2\n3,\"4\n5,6\n7,8\n")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("line 3: a quote is opened and never closed"),
            "{message}"
        );
    }

    #[test]
    fn names_given_must_be_different() {
        let columns = ["a".to_string(), "a".to_string()];
        let result = parse(Path::new("a.csv"), b"1,2\n", Format::Csv, Some(&columns));
        assert!(result.unwrap_err().to_string().contains("named twice"));
    }
}
