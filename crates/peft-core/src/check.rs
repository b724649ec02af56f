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

/// Refuses a rank of zero.
///
/// # Errors
/// Names the key, what was found and what is allowed.
pub fn rank(value: usize) -> Result<(), CoreError> {
    match value {
        0 => Err(CoreError::bad_value("rank", value, "at least 1")),
        _ => Ok(()),
    }
}
