//! `REPORT.md` and `report.html`, from one view and a template each.

use minijinja::{AutoEscape, Environment, HtmlEscape, UndefinedBehavior, Value};

use crate::error::ReportError;
use crate::view::View;

const SORTABLE: &str = include_str!("../assets/sortable.min.js");

/// The Markdown page.
pub(crate) fn markdown(view: &View) -> Result<String, ReportError> {
    render("REPORT.md", include_str!("../templates/REPORT.md"), view)
}

/// The HTML page: one file that loads nothing else.
pub(crate) fn html(view: &View) -> Result<String, ReportError> {
    render(
        "report.html",
        include_str!("../templates/report.html"),
        view,
    )
}

fn render(file: &'static str, template: &'static str, view: &View) -> Result<String, ReportError> {
    let failed = |source| ReportError::Template { file, source };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(true);
    environment.set_auto_escape_callback(|name| match name.ends_with(".html") {
        true => AutoEscape::Html,
        false => AutoEscape::None,
    });
    environment.add_global("sortable", Value::from_safe_string(SORTABLE.to_owned()));
    environment.add_global("style", Value::from_safe_string(STYLE.to_owned()));
    environment.add_filter("cell", table_cell);
    environment.add_filter("code", code);
    environment.add_template(file, template).map_err(failed)?;
    let template = environment.get_template(file).map_err(failed)?;
    template.render(view).map_err(failed)
}

const STYLE: &str = include_str!("../templates/report.css");

/// Names in backticks set as code, everything else escaped.
fn code(text: String) -> Value {
    let part = |(i, part): (usize, &str)| {
        let part = HtmlEscape(part).to_string();
        if i % 2 == 1 {
            format!("<code>{part}</code>")
        } else {
            part
        }
    };
    Value::from_safe_string(text.split('`').enumerate().map(part).collect())
}

/// Text that stays within one cell of a Markdown table.
fn table_cell(text: String) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    one_line
        .replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "&lt;")
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
