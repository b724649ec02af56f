//! A frozen linear layer whose weight is kept in 4 or 8 bits.

use burn::backend::Dispatch;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use peft_core::{Dense, Pass, Projection};

use crate::code_book::CodeBook;
use crate::codec::{self, Encoded};
use crate::double_quant::{self, DoubleQuantised};
use crate::int8;
use crate::packed_op::{BlockScales, PackedLayout, PackedWeight, packed_linear, unpack};
use crate::storage::{self, Code, FourBit};

/// A linear layer over a frozen weight in 4 or 8 bits.
///
/// The codes and scales are those of PyTorch's `[out, in]` layout, so that they are the bytes
/// bitsandbytes would store. They are never trained.
#[derive(Module, Debug)]
pub struct PackedLinear {
    /// Two codes a byte, `[ceil(d_in * d_out / 2)]`, or signed bytes, `[d_in * d_out]`.
    pub codes: Param<Tensor<1, Int>>,
    /// The scales of the blocks.
    pub scales: Scales,
    /// `[d_out]`
    pub bias: Option<Param<Tensor<1>>>,
    d_in: usize,
    d_out: usize,
    block_size: usize,
    #[module(skip)]
    coding: Coding,
}

/// What the codes of a packed weight stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coding {
    /// Values of a table, two codes a byte.
    FourBit(&'static CodeBook),
    /// Steps of 1/127 of a row's largest magnitude; a block is a row.
    Int8,
}

/// The scales of a packed weight's blocks.
#[derive(Module, Debug)]
pub enum Scales {
    /// One 32-bit number a block, `[blocks]`.
    Exact(Param<Tensor<1>>),
    /// Double quantisation.
    Quantised(QuantisedScales),
}

/// Scales in 8 bits each; see [`double_quant`].
#[derive(Module, Debug)]
pub struct QuantisedScales {
    /// One byte a block, `[blocks]`.
    pub absmax: Param<Tensor<1, Int>>,
    /// `[ceil(blocks / 256)]`
    pub nested_absmax: Param<Tensor<1>>,
    /// `[1]`
    pub offset: Param<Tensor<1>>,
}

impl Scales {
    pub(crate) fn exact(absmax: Vec<f32>, device: &Device) -> Self {
        Self::Exact(floats(absmax, device))
    }

    pub(crate) fn quantised(scales: DoubleQuantised, device: &Device) -> Self {
        Self::Quantised(QuantisedScales {
            absmax: bytes(scales.absmax, device),
            nested_absmax: floats(scales.nested_absmax, device),
            offset: floats(vec![scales.offset], device),
        })
    }

    fn dispatch(&self) -> BlockScales<Dispatch> {
        match self {
            Self::Exact(absmax) => BlockScales::Exact(absmax.val().into_dispatch()),
            Self::Quantised(scales) => BlockScales::Quantised {
                absmax: scales.absmax.val().into_dispatch(),
                nested_absmax: scales.nested_absmax.val().into_dispatch(),
                offset: scales.offset.val().into_dispatch(),
            },
        }
    }
}

/// A parameter that is no leaf of any graph, and is recorded as frozen: `train()` leaves it alone.
fn floats(values: Vec<f32>, device: &Device) -> Param<Tensor<1>> {
    let shape = [values.len()];
    let tensor = Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
    Param::initialized(ParamId::new(), tensor)
}

fn bytes(values: Vec<u8>, device: &Device) -> Param<Tensor<1, Int>> {
    let shape = [values.len()];
    let tensor = Tensor::from_data(TensorData::new(values, shape), (device, DType::U8));
    Param::initialized(ParamId::new(), tensor)
}

fn signed(values: Vec<i8>, device: &Device) -> Param<Tensor<1, Int>> {
    let shape = [values.len()];
    let tensor = Tensor::from_data(TensorData::new(values, shape), (device, DType::I8));
    Param::initialized(ParamId::new(), tensor)
}

impl PackedLinear {
    /// Packs a weight as the storage says.
    ///
    /// # Shapes
    /// - weight: the values of `[d_out, d_in]`, row by row
    ///
    /// # Panics
    /// If the values do not fill the shape, or the block size is odd or zero.
    pub fn pack<C: Code>(
        weight: &[f32],
        [d_out, d_in]: [usize; 2],
        storage: &FourBit<C>,
        bias: Option<Param<Tensor<1>>>,
        device: &Device,
    ) -> Self {
        assert_eq!(
            weight.len(),
            d_out * d_in,
            "the values must fill `[{d_out}, {d_in}]`"
        );
        let block_size = storage.block_size;
        let Encoded { codes, absmax } = codec::encode(weight, block_size, C::book());
        let scales = match storage.double_quant {
            true => Scales::quantised(double_quant::quantise(&absmax), device),
            false => Scales::exact(absmax, device),
        };
        Self::four_bit(
            codes,
            scales,
            (C::book(), block_size),
            [d_out, d_in],
            bias,
            device,
        )
    }

    /// A layer of 4-bit codes of this table, in blocks of this size.
    pub(crate) fn four_bit(
        codes: Vec<u8>,
        scales: Scales,
        (book, block_size): (&'static CodeBook, usize),
        [d_out, d_in]: [usize; 2],
        bias: Option<Param<Tensor<1>>>,
        device: &Device,
    ) -> Self {
        Self {
            codes: bytes(codes, device),
            scales,
            bias,
            d_in,
            d_out,
            block_size,
            coding: Coding::FourBit(book),
        }
    }

    /// A layer of 8-bit codes.
    pub(crate) fn int8(
        weight: int8::Encoded,
        [d_out, d_in]: [usize; 2],
        bias: Option<Param<Tensor<1>>>,
        device: &Device,
    ) -> Self {
        Self {
            codes: signed(weight.codes, device),
            scales: Scales::exact(weight.absmax, device),
            bias,
            d_in,
            d_out,
            block_size: d_in,
            coding: Coding::Int8,
        }
    }

    /// What the codes stand for.
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// Values that share one scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    fn packed(&self) -> PackedWeight<Dispatch> {
        let (d_in, d_out, block_size) = (self.d_in, self.d_out, self.block_size);
        PackedWeight {
            codes: self.codes.val().into_dispatch(),
            scales: self.scales.dispatch(),
            layout: PackedLayout {
                d_in,
                d_out,
                block_size,
                coding: self.coding,
            },
        }
    }
}

impl Projection for PackedLinear {
    fn forward(&self, x: Tensor<3>, _pass: &Pass<'_>) -> Tensor<3> {
        packed_linear(x, self.packed(), self.bias.as_ref().map(Param::val))
    }

    fn weight(&self, _pass: &Pass<'_>) -> Tensor<2> {
        unpack(self.packed()).transpose()
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }

    fn merge(&self, pass: &Pass<'_>) -> Option<Dense> {
        Some(Dense::new(self.weight(pass), Projection::bias(self)))
    }

    fn dims(&self) -> (usize, usize) {
        (self.d_in, self.d_out)
    }

    fn packing(&self) -> Option<String> {
        let double_quant = matches!(self.scales, Scales::Quantised(_));
        Some(match self.coding {
            Coding::FourBit(book) => storage::packing(book, double_quant, self.block_size),
            Coding::Int8 => "int8".into(),
        })
    }
}
