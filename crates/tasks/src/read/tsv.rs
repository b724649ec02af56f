//! Tab separated: no quoting at all, so sentences may hold quotes that are never closed.

use super::{Row, Source};
use crate::TaskError;

pub(super) fn rows(source: &Source, columns: Option<&[String]>) -> Result<Vec<Row>, TaskError> {
    let mut lines = source
        .text
        .split('\n')
        .map(|text| text.strip_suffix('\r').unwrap_or(text))
        .enumerate()
        .filter(|(_, text)| !text.is_empty());
    let columns = match columns {
        Some(columns) => columns.to_vec(),
        None => match lines.next() {
            Some((_, header)) => header.split('\t').map(str::to_string).collect(),
            None => return Ok(Vec::new()),
        },
    };
    let columns = source.checked(columns)?;
    lines
        .map(|(index, text)| {
            let fields: Vec<&str> = text.split('\t').collect();
            source.row(index + 1, &columns, fields.into_iter())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::TaskError;
    use crate::read::{Format, Table, parse};

    fn table(text: &str, columns: Option<&[&str]>) -> Result<Table, TaskError> {
        let columns: Option<Vec<_>> =
            columns.map(|columns| columns.iter().map(|name| name.to_string()).collect());
        parse(
            Path::new("a.tsv"),
            text.as_bytes(),
            Format::Tsv,
            columns.as_deref(),
        )
    }

    #[test]
    fn quotes_are_characters_as_any_other() {
        let table = table("sentence\tlabel\n\"so \"bad it 's\t0\r\n\nfine\t1\n", None).unwrap();
        assert_eq!(table.rows[0].fields["sentence"], "\"so \"bad it 's");
        assert_eq!(table.rows[0].fields["label"], "0");
        assert_eq!(table.rows[1].line, 4);
    }

    #[test]
    fn a_file_without_a_header_is_read_under_the_names_given() {
        let table = table(
            "a bad film\t0\na good film\t1\n",
            Some(&["sentence", "label"]),
        )
        .unwrap();
        assert_eq!(table.rows.len(), 2);
        assert_eq!(table.rows[0].line, 1);
        assert_eq!(table.rows[1].fields["label"], "1");
    }

    #[test]
    fn a_row_of_another_width_is_refused_with_its_line() {
        let message = table("a\tb\n1\t2\n1\t2\t3\n", None)
            .unwrap_err()
            .to_string();
        assert_eq!(message, "`a.tsv` line 3: 3 fields; expected 2: `a`, `b`");
    }

    #[test]
    fn a_name_used_twice_is_refused() {
        assert!(
            table("a\ta\n1\t2\n", None)
                .unwrap_err()
                .to_string()
                .contains("`a` is named twice")
        );
    }

    #[test]
    fn a_header_alone_is_no_data() {
        assert!(matches!(
            table("a\tb\n", None),
            Err(TaskError::NoRows { .. })
        ));
        assert!(matches!(table("", None), Err(TaskError::NoRows { .. })));
    }
}
