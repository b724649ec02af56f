//! Checks the configurations of this crate share.

use peft_core::CoreError;

/// Refuses a dropout that is no probability below 1.
pub(crate) fn check_dropout(dropout: f64) -> Result<(), CoreError> {
    if (0.0..1.0).contains(&dropout) {
        return Ok(());
    }
    Err(CoreError::bad_value(
        "dropout",
        dropout,
        "at least 0 and below 1",
    ))
}
