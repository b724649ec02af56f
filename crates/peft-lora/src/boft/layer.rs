//! The linear layer whose input goes through butterfly factors.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{Pass, Proj, Reweighted};

use crate::cayley::{apply_blocks, cayley, turned_rows};

/// A linear layer whose input is turned and whose outputs are scaled.
#[derive(Module, Debug)]
pub struct BoftLinear {
    pub(super) base: Proj,
    /// `[factors, blocks, size, size]`; only the skew-symmetric part counts
    pub(super) rotation: Param<Tensor<4>>,
    /// `[d_out]`
    pub(super) scale: Param<Tensor<1>>,
    /// The blocks of the product of all factors, where nothing is trained any more.
    steady: Option<Tensor<3>>,
}

/// The widest blocks that rows are taken through at once. In wider ones there is more to multiply than
/// the factors' reordering of narrow blocks costs, which moves every row several times.
const WIDEST: usize = 256;

impl BoftLinear {
    pub(super) fn new(base: Proj, rotation: Tensor<4>, scale: Tensor<1>) -> Self {
        Self {
            base,
            rotation: Param::from_tensor(rotation),
            scale: Param::from_tensor(scale),
            steady: None,
        }
    }

    /// The blocks of every factor, `[factors * blocks, size, size]`.
    fn rotations(&self) -> Tensor<3> {
        let any = self.rotation.val();
        let [factors, blocks, size, _] = any.dims();
        let any = any.reshape([factors * blocks, size, size]);
        let skew = (any.clone() - any.swap_dims(1, 2)).mul_scalar(0.5);
        cayley(skew)
    }

    /// `x R`, factor by factor.
    fn through(&self, x: Tensor<3>, rotations: Tensor<3>) -> Tensor<3> {
        let [factors, blocks, size, _] = self.rotation.lazy_shape().dims();
        // R is the product of the factors, the last one first.
        (0..factors).rev().fold(x, |x, factor| {
            let own = rotations.clone().narrow(0, factor * blocks, blocks);
            match factor {
                0 => apply_blocks(x, own),
                _ => {
                    let chunks = 1 << factor;
                    let mixed = apply_blocks(spread(x, chunks, size / 2), own);
                    gathered(mixed, chunks, size / 2)
                }
            }
        })
    }

    /// The width of the blocks that the product of all factors is made of.
    pub(super) fn width(&self) -> usize {
        let [factors, _, size, _] = self.rotation.lazy_shape().dims();
        size << (factors - 1)
    }

    /// The blocks of the product of all factors, `[d_in / width, width, width]`.
    fn blocks(&self) -> Tensor<3> {
        let [factors, blocks, size, _] = self.rotation.lazy_shape().dims();
        let rotations = self.rotations();
        if factors == 1 {
            return rotations;
        }
        // As many rows as a block is wide, an identity in each block, show all of them.
        let (width, d_in) = (self.width(), blocks * size);
        let groups = d_in / width;
        let identity = Tensor::<2>::eye(width, &rotations.device());
        let rows = identity.repeat_dim(1, groups).unsqueeze();
        let turned = self.through(rows, rotations);
        turned.reshape([width, groups, width]).swap_dims(0, 1)
    }

    /// Whether the product of the factors is worth forming.
    fn is_narrow(&self) -> bool {
        let [factors, ..] = self.rotation.lazy_shape().dims::<4>();
        factors == 1 || self.width() <= WIDEST
    }

    /// `x R`
    pub(super) fn turned(&self, x: Tensor<3>) -> Tensor<3> {
        let ([batch, seq, _], width) = (x.dims(), self.width());
        match &self.steady {
            Some(blocks) => apply_blocks(x, blocks.clone()),
            None if self.is_narrow() && batch * seq >= 2 * width => apply_blocks(x, self.blocks()),
            None => self.through(x, self.rotations()),
        }
    }
}

/// Within groups of `2 * half` chunks of the last axis: first chunks of the even places, then of
/// the odd ones.
fn gathered(x: Tensor<3>, half: usize, chunk: usize) -> Tensor<3> {
    let [batch, seq, width] = x.dims();
    let groups = width / (2 * half * chunk);
    let x = x.reshape([batch * seq, groups, half, 2, chunk]);
    x.swap_dims(2, 3).reshape([batch, seq, width])
}

/// The inverse of [`gathered`].
fn spread(x: Tensor<3>, half: usize, chunk: usize) -> Tensor<3> {
    let [batch, seq, width] = x.dims();
    let groups = width / (2 * half * chunk);
    let x = x.reshape([batch * seq, groups, 2, half, chunk]);
    x.swap_dims(2, 3).reshape([batch, seq, width])
}

impl Reweighted for BoftLinear {
    fn base(&self) -> &Proj {
        &self.base
    }

    fn forward(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let y = self.base.forward(self.turned(x), pass);
        let scale = self.scale.val();
        let y = y * scale.clone().unsqueeze();
        // The base's bias is inside y and must not be scaled.
        match self.base.bias() {
            Some(bias) => y + (bias.clone() - bias * scale).unsqueeze(),
            None => y,
        }
    }

    fn weight(&self, pass: &Pass<'_>) -> Tensor<2> {
        let blocks = self.steady.clone().unwrap_or_else(|| self.blocks());
        turned_rows(self.base.weight(pass), blocks) * self.scale.val().unsqueeze()
    }

    fn steady(&self, _pass: &Pass<'_>) -> Option<Proj> {
        let steady = self.is_narrow().then(|| self.blocks().detach());
        let layer = Self {
            steady: Some(steady?),
            ..self.clone()
        };
        Some(Proj::new(layer))
    }
}
