//! The 4-bit storages of frozen weights.

use burn::tensor::Device;
use peft_core::{CoreError, Dense, Proj, Site, Storage};
use serde::{Deserialize, Serialize};

use crate::code_book::{CodeBook, FP4, NF4};
use crate::codec::BLOCK_SIZES;
use crate::double_quant::NESTED_BLOCK;
use crate::packed_linear::PackedLinear;

/// Frozen weights in 4-bit codes of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    bound(serialize = "C: Code", deserialize = "C: Code")
)]
pub struct FourBit<C> {
    /// Values that share one scale: a power of two from 32 to 4096.
    pub block_size: usize,
    /// Whether the scales are kept in 8 bits too.
    pub double_quant: bool,
    #[serde(skip)]
    code: C,
}

/// Frozen weights in 4-bit NormalFloat, `storage = "nf4"`.
pub type Nf4 = FourBit<NormalFloat>;

/// Frozen weights in 4-bit floating point, `storage = "fp4"`.
pub type Fp4 = FourBit<Float>;

/// Which table a [`FourBit`] storage uses.
pub trait Code: Clone + Default + std::fmt::Debug + PartialEq + Send + Sync + 'static {
    /// The table.
    fn book() -> &'static CodeBook;
}

/// The codes of [`NF4`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NormalFloat;

/// The codes of [`FP4`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Float;

impl Code for NormalFloat {
    fn book() -> &'static CodeBook {
        &NF4
    }
}

impl Code for Float {
    fn book() -> &'static CodeBook {
        &FP4
    }
}

impl<C: Code> Default for FourBit<C> {
    fn default() -> Self {
        Self::new(64, true)
    }
}

impl<C: Code> FourBit<C> {
    /// Blocks of this size, their scales quantised again or not.
    pub fn new(block_size: usize, double_quant: bool) -> Self {
        Self {
            block_size,
            double_quant,
            code: C::default(),
        }
    }

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

impl<C: Code> Storage for FourBit<C> {
    fn name(&self) -> String {
        name(C::book(), self.double_quant)
    }

    fn packing(&self) -> String {
        packing(C::book(), self.double_quant, self.block_size)
    }

    fn pack(&self, site: &Site, dense: Dense) -> Result<Proj, CoreError> {
        self.check().map_err(|error| at(site, error))?;
        let expected = "a finite number, because a block is scaled by its largest magnitude";
        let weight = PlainWeight::read(site, &dense, expected, f32::is_finite)?;
        let (values, bias) = (&weight.values, dense.bias);
        let packed = PackedLinear::pack(values, weight.dims, self, bias, &weight.device);
        Ok(Proj::new(packed))
    }

    fn bytes(&self, (d_in, d_out): (usize, usize)) -> usize {
        let numel = d_in * d_out;
        let codes = numel.div_ceil(2);
        let blocks = numel.div_ceil(self.block_size);
        let offset = 4;
        match self.double_quant {
            true => codes + blocks + 4 * blocks.div_ceil(NESTED_BLOCK) + offset,
            false => codes + 4 * blocks,
        }
    }
}

/// The name of 4-bit codes in tables: `nf4`, `nf4+dq`.
fn name(book: &CodeBook, double_quant: bool) -> String {
    let suffix = if double_quant { "+dq" } else { "" };
    format!("{}{suffix}", book.name)
}

/// The same with the size of the blocks: `nf4+dq in blocks of 64`.
pub(crate) fn packing(book: &CodeBook, double_quant: bool, block_size: usize) -> String {
    format!("{} in blocks of {block_size}", name(book, double_quant))
}

/// A dense weight's values in PyTorch's order.
pub(crate) struct PlainWeight {
    /// Row by row.
    pub(crate) values: Vec<f32>,
    /// `[d_out, d_in]`
    pub(crate) dims: [usize; 2],
    pub(crate) device: Device,
}

impl PlainWeight {
    /// Reads the weight of a layer; an error names the first value that is not `good`.
    pub(crate) fn read(
        site: &Site,
        dense: &Dense,
        expected: &str,
        good: impl Fn(f32) -> bool,
    ) -> Result<Self, CoreError> {
        let weight = dense.weight.val();
        let ([d_in, d_out], device) = (weight.dims(), weight.device());
        let values = weight.transpose().into_data().convert::<f32>();
        let values: Vec<f32> = values.try_to_vec().expect("converted to f32");
        if let Some(place) = values.iter().position(|v| !good(*v)) {
            let key = format!("{}.weight[{}, {}]", site.path, place / d_in, place % d_in);
            return Err(CoreError::bad_value(&key, values[place], expected));
        }
        Ok(Self {
            values,
            dims: [d_out, d_in],
            device,
        })
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
