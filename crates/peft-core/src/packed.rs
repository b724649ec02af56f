//! Weights that a checkpoint holds packed.

use burn::module::Param;
use burn::tensor::{Device, Tensor};

use crate::error::CoreError;
use crate::projection::Proj;
use crate::state::Tensors;

/// Reads linear layers whose weights a checkpoint holds packed. Models ask it for each of theirs
/// and know nothing of the formats.
pub trait PackedReader {
    /// The layer whose weight is `{path}.weight` and what belongs to it, or none where the tensors
    /// hold it plainly.
    ///
    /// What belongs to a packed weight is taken out of `tensors`, also where it cannot be used.
    ///
    /// # Errors
    /// If the tensors are no weight of these dimensions; the error names the tensor.
    fn read(
        &self,
        layer: PackedLayer<'_>,
        tensors: &mut Tensors,
        device: &Device,
    ) -> Option<Result<Proj, CoreError>>;
}

/// A linear layer as a model asks for it.
#[derive(Debug)]
pub struct PackedLayer<'a> {
    /// Name of the layer in the checkpoint.
    pub path: &'a str,
    /// `(d_in, d_out)`
    pub dims: (usize, usize),
    /// The bias the model has read.
    pub bias: Option<Param<Tensor<1>>>,
}

/// Reads no packed weights at all.
#[derive(Clone, Copy, Debug)]
pub struct DenseOnly;

impl PackedReader for DenseOnly {
    fn read(
        &self,
        _layer: PackedLayer<'_>,
        _tensors: &mut Tensors,
        _device: &Device,
    ) -> Option<Result<Proj, CoreError>> {
        None
    }
}
