//! One factor of a Kronecker product.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{Init, kernels};

/// One factor of the Kronecker product, `[in, out]`.
#[derive(Module, Debug)]
pub(super) enum Factor {
    /// The matrix itself.
    Whole(Param<Tensor<2>>),
    /// A low-rank product.
    Product(Pair),
}

/// A low-rank product.
#[derive(Module, Debug)]
pub(super) struct Pair {
    /// `[in, rank]`
    a: Param<Tensor<2>>,
    /// `[rank, out]`
    b: Param<Tensor<2>>,
}

/// The shape of a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    /// The rank of a product; none for the matrix itself.
    pub(super) rank: Option<usize>,
}

impl Shape {
    /// Number of values.
    pub(super) fn parameters(self) -> usize {
        match self.rank {
            Some(rank) => rank * (self.d_in + self.d_out),
            None => self.d_in * self.d_out,
        }
    }
}

impl Factor {
    /// A factor of zeros; of a product, the output side.
    pub(super) fn zero(shape: Shape, init: &mut Init) -> Self {
        let Shape { d_in, d_out, rank } = shape;
        match rank {
            None => Self::Whole(Param::from_tensor(init.zeros([d_in, d_out]))),
            Some(rank) => Self::Product(Pair {
                a: Param::from_tensor(init.kaiming_uniform([d_in, rank], d_in)),
                b: Param::from_tensor(init.zeros([rank, d_out])),
            }),
        }
    }

    /// A Kaiming-uniform factor.
    pub(super) fn random(shape: Shape, init: &mut Init) -> Self {
        let Shape { d_in, d_out, rank } = shape;
        let mut uniform = |d_in, d_out| {
            let start = init.kaiming_uniform([d_in, d_out], d_in);
            Param::from_tensor(start)
        };
        match rank {
            None => Self::Whole(uniform(d_in, d_out)),
            Some(rank) => Self::Product(Pair {
                a: uniform(d_in, rank),
                b: uniform(rank, d_out),
            }),
        }
    }

    /// The last axis through the factor.
    pub(super) fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Whole(matrix) => kernels::linear(x, matrix.val(), None),
            Self::Product(Pair { a, b }) => {
                kernels::linear(kernels::linear(x, a.val(), None), b.val(), None)
            }
        }
    }

    pub(super) fn matrix(&self) -> Tensor<2> {
        match self {
            Self::Whole(matrix) => matrix.val(),
            Self::Product(Pair { a, b }) => a.val().matmul(b.val()),
        }
    }

    /// `(in, out)`
    pub(super) fn dims(&self) -> (usize, usize) {
        match self {
            Self::Whole(matrix) => matrix.lazy_shape().dims::<2>().into(),
            Self::Product(Pair { a, b }) => {
                (a.lazy_shape().dims::<2>()[0], b.lazy_shape().dims::<2>()[1])
            }
        }
    }
}
