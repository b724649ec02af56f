//! Templates over a row's fields.

use minijinja::{Environment, ErrorKind, Template, UndefinedBehavior};

use crate::TaskError;
use crate::read::{Row, Table};

/// A compiled set of rules; templates borrow from it.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // A prompt may end with a line end that matters, and a field that is not there is an error.
    environment.set_keep_trailing_newline(true);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment
}

/// A template and what it is called in a configuration.
pub(crate) struct Text<'a> {
    name: &'static str,
    source: &'a str,
    template: Template<'a, 'a>,
}

impl<'a> Text<'a> {
    pub(crate) fn compile(
        environment: &'a Environment<'static>,
        name: &'static str,
        source: &'a str,
    ) -> Result<Self, TaskError> {
        let template = environment
            .template_from_str(source)
            .map_err(|error| invalid(name, source, &error.to_string()))?;
        Ok(Self {
            name,
            source,
            template,
        })
    }

    /// Refuses a template that gives every row the same text: a field's name, most likely.
    pub(crate) fn check_fields(&self) -> Result<(), TaskError> {
        if !self.template.undeclared_variables(false).is_empty() {
            return Ok(());
        }
        let reason = "it uses no field of the data, so that every row would get the same text; \
                      write a field as `{{ name }}`";
        Err(invalid(self.name, self.source, reason))
    }

    /// The text of one row.
    pub(crate) fn render(&self, table: &Table, row: &Row) -> Result<String, TaskError> {
        self.template.render(&row.fields).map_err(|error| {
            let mut asked: Vec<_> = self
                .template
                .undeclared_variables(false)
                .into_iter()
                .collect();
            asked.sort();
            match asked
                .into_iter()
                .find(|field| !row.fields.contains_key(field))
            {
                Some(field) if error.kind() == ErrorKind::UndefinedError => {
                    table.missing(row, &field)
                }
                _ => table.error(
                    row,
                    invalid(self.name, self.source, &error.to_string()).to_string(),
                ),
            }
        })
    }
}

fn invalid(name: &'static str, source: &str, reason: &str) -> TaskError {
    TaskError::Template {
        name,
        source_text: source.to_string(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::read::{Format, parse};

    fn render(source: &str, json: &str) -> Result<String, String> {
        let table = parse(Path::new("a.jsonl"), json.as_bytes(), Format::Jsonl, None).unwrap();
        let environment = environment();
        Text::compile(&environment, "prompt", source)
            .and_then(|text| text.render(&table, &table.rows[0]))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn text_is_neither_escaped_nor_trimmed() {
        let text = render(" {{ q }}\n", r#"{"q": "<b> & \"c\" "}"#);
        assert_eq!(text.unwrap(), " <b> & \"c\" \n");
    }

    #[test]
    fn a_template_without_a_field_is_refused() {
        let environment = environment();
        let check = |source| {
            Text::compile(&environment, "text", source)
                .unwrap()
                .check_fields()
        };
        let message = check("sentence").unwrap_err().to_string();
        assert!(message.contains("uses no field of the data"), "{message}");
        assert!(check("{{ sentence }}").is_ok());
    }

    #[test]
    fn a_missing_field_is_named_with_those_there_are() {
        let message = render("{{ a }} {{ qustion }}", r#"{"a": 1, "question": "x"}"#).unwrap_err();
        let expected = "`a.jsonl` line 1 has no field `qustion`; its fields are `a`, `question`";
        assert_eq!(message, expected);
    }

    #[test]
    fn a_field_may_be_optional_if_the_template_says_so() {
        let source = "{% if input is defined %}{{ input }}{% else %}none{% endif %}";
        assert_eq!(render(source, r#"{"a": 1}"#).unwrap(), "none");
    }

    #[test]
    fn a_template_that_does_not_parse_is_shown() {
        let message = render("{{ a", r#"{"a": 1}"#).unwrap_err();
        assert!(
            message.starts_with("the prompt template `{{ a` is not valid: "),
            "{message}"
        );
    }

    #[test]
    fn a_template_that_fails_on_a_row_names_the_row() {
        let message = render("{{ a + 1 }}", r#"{"a": "x"}"#).unwrap_err();
        assert!(
            message.starts_with("`a.jsonl` line 1: the prompt template"),
            "{message}"
        );
    }
}
