//! Packed layers to checkpoint tensors.

use burn::module::Param;
use burn::tensor::{Element, Int, Tensor, TensorData};
use peft_core::Proj;
use peft_core::state::Tensors;

use super::state::{KEY, Nested, QuantState};
use crate::code_book::CodeBook;
use crate::double_quant::{NESTED_BLOCK, dynamic_map};
use crate::packed_linear::{Coding, PackedLinear, Scales};

/// The tensors of a packed layer's weight, named behind `path`, or none where it is not packed; the
/// bias is not among them.
///
/// `dtype` is what PyTorch calls the type that the weight is decoded to: `float32`. It is said of
/// 4-bit weights alone.
pub fn tensors(path: &str, layer: &Proj, dtype: &str) -> Option<Tensors> {
    let layer = layer.downcast_ref::<PackedLinear>()?;
    let parts = match layer.coding() {
        Coding::FourBit(book) => four_bit(layer, book, dtype),
        Coding::Int8 => eight_bit(layer),
    };
    let named = parts
        .into_iter()
        .map(|(name, data)| (format!("{path}.{name}"), data));
    Some(named.collect())
}

type Part = (String, TensorData);

fn eight_bit(layer: &PackedLinear) -> Vec<Part> {
    let (d_in, d_out) = peft_core::Projection::dims(layer);
    let Scales::Exact(scales) = &layer.scales else {
        unreachable!("8-bit weights have a scale for each row")
    };
    vec![
        part("weight", codes::<i8>(&layer.codes), [d_out, d_in]),
        part("SCB", floats(scales), [d_out]),
        part("weight_format", vec![0u8], []),
    ]
}

fn four_bit(layer: &PackedLinear, book: &CodeBook, dtype: &str) -> Vec<Part> {
    let (d_in, d_out) = peft_core::Projection::dims(layer);
    let packed = codes::<u8>(&layer.codes);
    let bytes = packed.len();
    let mut parts = vec![
        part("weight", packed, [bytes, 1]),
        part("weight.quant_map", book.values.to_vec(), [16]),
    ];
    let nested = match &layer.scales {
        Scales::Exact(absmax) => {
            parts.push(vector("weight.absmax", floats(absmax)));
            None
        }
        Scales::Quantised(scales) => {
            parts.push(vector("weight.absmax", codes::<u8>(&scales.absmax)));
            let nested = floats(&scales.nested_absmax);
            parts.push(vector("weight.nested_absmax", nested));
            parts.push(vector("weight.nested_quant_map", dynamic_map().to_vec()));
            Some(Nested {
                nested_blocksize: NESTED_BLOCK,
                nested_dtype: "float32".into(),
                nested_offset: floats(&scales.offset)[0].into(),
            })
        }
    };
    let state = QuantState {
        quant_type: book.name.into(),
        blocksize: layer.block_size(),
        dtype: dtype.into(),
        shape: vec![d_out, d_in],
        nested,
    };
    let state = serde_json::to_vec(&state).expect("names and numbers serialise");
    parts.push(vector(&format!("{KEY}{}", book.name), state));
    parts
}

fn part<E: Element, const D: usize>(name: &str, values: Vec<E>, shape: [usize; D]) -> Part {
    (name.into(), TensorData::new(values, shape))
}

fn vector<E: Element>(name: &str, values: Vec<E>) -> Part {
    let len = values.len();
    part(name, values, [len])
}

fn codes<E: Element>(param: &Param<Tensor<1, Int>>) -> Vec<E> {
    let data = param.val().into_data().convert::<E>();
    data.try_to_vec().expect("converted to this type")
}

fn floats(param: &Param<Tensor<1>>) -> Vec<f32> {
    let data = param.val().into_data().convert::<f32>();
    data.try_to_vec().expect("converted to f32")
}
