//! Checks that several methods' configurations share.

use crate::error::CoreError;

/// Refuses a dropout that is no probability below 1.
///
/// # Errors
/// Names the key, what was found and what is allowed.
pub fn dropout(value: f64) -> Result<(), CoreError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(CoreError::bad_value(
        "dropout",
        value,
        "at least 0 and below 1",
    ))
}

/// No width, rank or length of a method is above this: beyond it, sizes would overflow before any
/// memory were asked for.
pub const MOST: usize = 1 << 20;

/// Refuses a size of zero or beyond [`MOST`]; `key` is what the configuration calls it.
///
/// # Errors
/// Names the key, what was found and what is allowed.
pub fn size(key: &str, value: usize) -> Result<(), CoreError> {
    match value {
        0 => Err(CoreError::bad_value(key, value, "at least 1")),
        1..=MOST => Ok(()),
        _ => Err(CoreError::bad_value(key, value, &format!("at most {MOST}"))),
    }
}

/// Refuses a rank of zero, or an absurd one.
///
/// # Errors
/// Names the key, what was found and what is allowed.
pub fn rank(value: usize) -> Result<(), CoreError> {
    size("rank", value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_zero_and_beyond_any_model_are_refused_by_name() {
        assert!(rank(8).is_ok() && rank(MOST).is_ok());
        assert!(rank(0).unwrap_err().to_string().contains("`rank` is 0"));
        let error = size("bottleneck", usize::MAX).unwrap_err().to_string();
        assert!(
            error.contains("`bottleneck`") && error.contains("at most"),
            "{error}"
        );
    }
}
