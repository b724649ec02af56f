//! Checkpoint tensors to packed layers, bit for bit.

use burn::tensor::Device;
use peft_core::state::Tensors;
use peft_core::{CoreError, PackedLayer, PackedReader, Proj};

use super::parts::Parts;
use super::state::{KEY, QuantState};
use crate::code_book::{self, CodeBook};
use crate::codec::BLOCK_SIZES;
use crate::double_quant::{DoubleQuantised, NESTED_BLOCK, dynamic_map};
use crate::int8;
use crate::packed_linear::{PackedLinear, Scales};

/// Reads the weights that bitsandbytes packed to 4 or 8 bits; nothing is quantised anew.
#[derive(Clone, Copy, Debug)]
pub struct BitsAndBytes;

impl PackedReader for BitsAndBytes {
    fn read(
        &self,
        layer: PackedLayer<'_>,
        tensors: &mut Tensors,
        device: &Device,
    ) -> Option<Result<Proj, CoreError>> {
        let parts = Parts::take(layer.path, tensors)?;
        Some(read(parts, layer, device))
    }
}

fn read(mut parts: Parts<'_>, layer: PackedLayer<'_>, device: &Device) -> Result<Proj, CoreError> {
    let (d_in, d_out) = layer.dims;
    let packed = if parts.eight_bit() {
        let weight = eight_bit(&mut parts, [d_out, d_in])?;
        PackedLinear::int8(weight, [d_out, d_in], layer.bias, device)
    } else {
        let weight = four_bit(&mut parts, [d_out, d_in])?;
        let scales = match weight.scales {
            BlockScales::Exact(absmax) => Scales::exact(absmax, device),
            BlockScales::Quantised(scales) => Scales::quantised(scales, device),
        };
        let codes = (weight.book, weight.block_size);
        PackedLinear::four_bit(
            weight.codes,
            scales,
            codes,
            [d_out, d_in],
            layer.bias,
            device,
        )
    };
    parts.finish()?;
    Ok(Proj::new(packed))
}

fn eight_bit(parts: &mut Parts<'_>, [d_out, d_in]: [usize; 2]) -> Result<int8::Encoded, CoreError> {
    if parts.has("weight_format") {
        let format = parts.bytes("weight_format", Some(1))?[0];
        if format != 0 {
            // Tiled layouts of old CUDA kernels.
            let expected = "0, row by row; load and save the model with a current bitsandbytes";
            return Err(parts.error("weight_format", format, expected));
        }
    }
    Ok(int8::Encoded {
        codes: parts.signed("weight", [d_out, d_in])?,
        absmax: parts.floats("SCB", d_out)?,
    })
}

/// A 4-bit weight as a checkpoint holds it.
struct FourBitWeight {
    codes: Vec<u8>,
    scales: BlockScales,
    book: &'static CodeBook,
    block_size: usize,
}

enum BlockScales {
    Exact(Vec<f32>),
    Quantised(DoubleQuantised),
}

fn four_bit(parts: &mut Parts<'_>, shape: [usize; 2]) -> Result<FourBitWeight, CoreError> {
    let (state, book) = state(parts, shape)?;
    let Some(numel) = shape[0].checked_mul(shape[1]) else {
        return Err(parts.error("weight", format!("{shape:?}"), "a weight that fits memory"));
    };
    let blocks = numel.div_ceil(state.blocksize);
    let codes = parts.bytes("weight", Some(numel.div_ceil(2)))?;
    parts.table("weight.quant_map", &book.values)?;
    let scales = match &state.nested {
        None => BlockScales::Exact(parts.floats("weight.absmax", blocks)?),
        Some(nested) => {
            let key = format!("{KEY}{}", book.name);
            if nested.nested_blocksize != NESTED_BLOCK {
                let found = format!("`nested_blocksize` {}", nested.nested_blocksize);
                return Err(parts.error(&key, found, "256"));
            }
            let offset = nested.nested_offset as f32;
            if !offset.is_finite() {
                let found = format!("`nested_offset` {}", nested.nested_offset);
                return Err(parts.error(&key, found, "a finite 32-bit number"));
            }
            parts.table("weight.nested_quant_map", dynamic_map())?;
            let nested = blocks.div_ceil(NESTED_BLOCK);
            BlockScales::Quantised(DoubleQuantised {
                absmax: parts.bytes("weight.absmax", Some(blocks))?,
                nested_absmax: parts.floats("weight.nested_absmax", nested)?,
                offset,
            })
        }
    };
    Ok(FourBitWeight {
        codes,
        scales,
        book,
        block_size: state.blocksize,
    })
}

/// The JSON object beside a 4-bit weight, and the table it names.
fn state(
    parts: &mut Parts<'_>,
    shape: [usize; 2],
) -> Result<(QuantState, &'static CodeBook), CoreError> {
    let key = parts.names().find(|name| name.starts_with(KEY));
    let Some(key) = key.map(String::from) else {
        let expected = format!("a tensor `{KEY}nf4` or `{KEY}fp4` beside it");
        return Err(parts.error("weight", "packed", &expected));
    };
    let bytes = parts.bytes(&key, None)?;
    let state: QuantState = serde_json::from_slice(&bytes)
        .map_err(|e| parts.error(&key, format!("no such JSON ({e})"), "a quantisation state"))?;
    let named = key.strip_prefix(KEY) == Some(state.quant_type.as_str());
    let Some(book) = code_book::by_name(&state.quant_type).filter(|_| named) else {
        let found = format!("of `quant_type` `{}`", state.quant_type);
        let expected = "`nf4` or `fp4`, the same as in the tensor's name";
        return Err(parts.error(&key, found, expected));
    };
    if !BLOCK_SIZES.contains(&state.blocksize) {
        let found = format!("of `blocksize` {}", state.blocksize);
        return Err(parts.error(&key, found, "a power of two from 32 to 4096"));
    }
    if state.shape != shape {
        let found = format!("of `shape` {:?}", state.shape);
        let expected = format!("{shape:?}, PyTorch's [out, in] of this layer");
        return Err(parts.error(&key, found, &expected));
    }
    Ok((state, book))
}
