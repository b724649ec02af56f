//! NF4 as a storage of frozen weights.

use peft_core::{CoreError, Dense, Proj, Site, Storage};
use serde::{Deserialize, Serialize};

use crate::codec::BLOCK_SIZES;
use crate::double_quant::NESTED_BLOCK;
use crate::packed_linear::PackedLinear;

/// Frozen weights in 4-bit NormalFloat, `storage = "nf4"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nf4 {
    /// Values that share one scale: a power of two from 32 to 4096.
    pub block_size: usize,
    /// Whether the scales are kept in 8 bits too.
    pub double_quant: bool,
}

impl Default for Nf4 {
    fn default() -> Self {
        Self {
            block_size: 64,
            double_quant: true,
        }
    }
}

impl Nf4 {
    /// Refuses block sizes that bitsandbytes does not know.
    ///
    /// # Errors
    /// Names the key, what was found and what is allowed.
    pub fn check(&self) -> Result<(), CoreError> {
        if BLOCK_SIZES.contains(&self.block_size) {
            return Ok(());
        }
        let expected = "a power of two from 32 to 4096";
        Err(CoreError::bad_value(
            "block_size",
            self.block_size,
            expected,
        ))
    }
}

impl Storage for Nf4 {
    fn name(&self) -> String {
        if self.double_quant {
            "nf4+dq".into()
        } else {
            "nf4".into()
        }
    }

    fn pack(&self, site: &Site, dense: Dense) -> Result<Proj, CoreError> {
        self.check().map_err(|error| at(site, error))?;
        let weight = dense.weight.val();
        let ([d_in, d_out], device) = (weight.dims(), weight.device());
        let values = weight.transpose().into_data().convert::<f32>();
        let values = values.as_slice::<f32>().expect("converted to f32");
        if let Some(place) = values.iter().position(|v| !v.is_finite()) {
            let key = format!("{}.weight[{}, {}]", site.path, place / d_in, place % d_in);
            let expected = "a finite number, because a block is scaled by its largest magnitude";
            return Err(CoreError::bad_value(&key, values[place], expected));
        }
        let packed = PackedLinear::pack(values, [d_out, d_in], self, dense.bias, &device);
        Ok(Proj::new(packed))
    }

    fn bytes(&self, numel: usize) -> usize {
        let codes = numel.div_ceil(2);
        let blocks = numel.div_ceil(self.block_size);
        let offset = 4;
        match self.double_quant {
            true => codes + blocks + 4 * blocks.div_ceil(NESTED_BLOCK) + offset,
            false => codes + 4 * blocks,
        }
    }
}

/// The error with the layer it happened at.
fn at(site: &Site, error: CoreError) -> CoreError {
    match error {
        CoreError::BadValue {
            key,
            found,
            expected,
        } => CoreError::BadValue {
            key: format!("{key}` of `{}", site.path),
            found,
            expected,
        },
        other => other,
    }
}
