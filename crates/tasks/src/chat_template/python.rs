//! What templates written for Python's Jinja expect.

use std::fmt::Write as _;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Truth values and nothing as Python writes them.
pub(super) fn write_value(
    out: &mut Output<'_>,
    state: &State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

/// By which a template refuses a chat.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now`: the time at which the template was loaded, in UTC, so that texts of one run
/// agree with each other.
pub(super) fn clock() -> impl Fn(String) -> Result<String, Error> + Send + Sync + 'static {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let now = DateTime::from_timestamp(seconds as i64, 0).unwrap_or_default();
    move |format: String| {
        let mut text = String::new();
        write!(text, "{}", now.format(&format)).map_err(|_| {
            let reason = format!("`{format}` is no format of a date; expected one of `strftime`");
            Error::new(ErrorKind::InvalidOperation, reason)
        })?;
        Ok(text)
    }
}

/// JSON as Python's `json.dumps` writes it: nothing escaped for HTML, a space after `,` and `:`.
pub(super) fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Text is never escaped to ASCII, which is the default of `transformers`.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let wrong = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(error)
    };
    let mut value = serde_json::to_value(&value).map_err(wrong)?;
    if sorted == Some(true) {
        value.sort_all_objects();
    }
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = vec![b' '; width.min(16)];
            let formatter = PrettyFormatter::with_indent(&indent);
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, formatter,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, Spaced,
        )),
    };
    written.map_err(wrong)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A space after `,` and `:`.
struct Spaced;

impl Spaced {
    fn between<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
        match first {
            true => Ok(()),
            false => writer.write_all(b", "),
        }
    }
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        Self::between(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        Self::between(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The template without the marks that `transformers` adds to Jinja around what the assistant
/// says: `{% generation %}` becomes a condition that always holds, so that the rules for space
/// around blocks stay in force.
pub(super) fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag
            .trim_start_matches("{%")
            .trim_end_matches("%}")
            .trim_matches(['-', '+'])
            .trim();
        out += before;
        match word {
            "generation" => out += &tag.replace(word, "if true"),
            "endgeneration" => out += &tag.replace(word, "endif"),
            _ => out += tag,
        }
        rest = after;
    }
    out + rest
}
