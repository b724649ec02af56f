//! Sentences from templates: `{name}` slots, and `a(n)` settled by the word that follows it.

/// Fills the `{name}` slots of `template` and settles every `a(n)`.
///
/// The templates are constants of this crate, so a slot without a value is a bug and panics.
pub(super) fn fill(template: &str, slots: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let close = open + rest[open..].find('}').expect("a slot is closed");
        let name = &rest[open + 1..close];
        let value = slots.iter().find(|(slot, _)| *slot == name);
        out.push_str(&rest[..open]);
        out.push_str(
            value
                .unwrap_or_else(|| panic!("no value for the slot `{name}`"))
                .1,
        );
        rest = &rest[close + 1..];
    }
    out.push_str(rest);
    capitalised(&settle_articles(&out))
}

/// `a(n)` becomes `an` before a vowel letter and `a` before any other: no word of the scenario
/// starts with a mute `h` or a `u` that sounds like `you`.
fn settle_articles(text: &str) -> String {
    let mut pieces = text.split("a(n) ");
    let mut out = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let vowel = piece.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']);
        out.push_str(if vowel { "an " } else { "a " });
        out.push_str(piece);
    }
    out
}

/// The text with its first letter in upper case, except where it starts with an address.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !text.starts_with("youtube.com") => {
            first.to_uppercase().chain(chars).collect()
        }
        _ => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_follow_the_next_word() {
        let text = fill(
            "a(n) {x} video and a(n) {y} one",
            &[("x", "advanced"), ("y", "long")],
        );
        assert_eq!(text, "An advanced video and a long one");
    }

    #[test]
    fn addresses_keep_their_lower_case() {
        assert_eq!(
            fill("youtube.com/{id} is it", &[("id", "7")]),
            "youtube.com/7 is it"
        );
    }

    #[test]
    #[should_panic(expected = "no value for the slot `z`")]
    fn a_slot_without_a_value_is_a_bug() {
        fill("{z}", &[]);
    }
}
