//! What a 4-bit weight's JSON object says.

use serde::{Deserialize, Serialize};

/// Name of the tensor with the JSON bytes, without the name of the codes.
pub(super) const KEY: &str = "weight.quant_state.bitsandbytes__";

/// The JSON object beside a 4-bit weight; the `nested` keys are there with double quantisation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct QuantState {
    /// `nf4` or `fp4`.
    pub(super) quant_type: String,
    pub(super) blocksize: usize,
    /// Type of the weight before it was packed, and of the decoded one.
    pub(super) dtype: String,
    /// `[out, in]`
    pub(super) shape: Vec<usize>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) nested: Option<Nested>,
}

/// The keys of double quantisation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Nested {
    pub(super) nested_blocksize: usize,
    pub(super) nested_dtype: String,
    pub(super) nested_offset: f64,
}
