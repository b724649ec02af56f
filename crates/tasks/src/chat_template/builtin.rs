//! Templates for models that come without one, after formats in wide use.

/// Names and templates.
pub(super) const TEMPLATES: &[(&str, &str)] = &[
    ("chatml", include_str!("builtin/chatml.jinja")),
    ("gemma", include_str!("builtin/gemma.jinja")),
    ("llama2", include_str!("builtin/llama2.jinja")),
    ("llama3", include_str!("builtin/llama3.jinja")),
    ("zephyr", include_str!("builtin/zephyr.jinja")),
];

/// A template by its name.
pub(super) fn source(name: &str) -> Option<&'static str> {
    let (_, source) = TEMPLATES.iter().find(|(known, _)| *known == name)?;
    Some(source)
}
