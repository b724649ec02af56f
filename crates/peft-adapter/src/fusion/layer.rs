//! Attention over what several adapters add to a sublayer's output.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Tensor, activation::softmax};
use peft_core::compose::settled_parts;
use peft_core::kernels::linear;
use peft_core::{Dense, Init, Pass, Sublayer, Tap, TapSlot};

use super::Fusion;

/// AdapterHub's factor on the distance of the value matrix from the identity.
const REGULARIZATION: f64 = 0.01;
/// Standard deviation at which the matrices start.
const STD: f64 = 0.02;

/// The adapters of a sublayer and the attention over them.
#[derive(Module, Debug)]
pub(super) struct FusionTap {
    parts: Vec<Option<TapSlot>>,
    query: Option<Dense>,
    pub(super) key: Option<Dense>,
    /// `[d, d]`
    value: Option<Param<Tensor<2>>>,
    query_before_ln: bool,
    regularization: bool,
    dropout: Dropout,
}

impl FusionTap {
    pub(super) fn new(
        fusion: &Fusion,
        parts: Vec<Option<TapSlot>>,
        d: usize,
        init: &mut Init,
    ) -> Self {
        let mut layer = |has: bool| {
            let bias = Some(init.zeros([d]));
            has.then(|| Dense::new(init.normal([d, d], STD), bias))
        };
        let (query, key) = (layer(fusion.query), layer(fusion.key));
        let value = match fusion.value_initialized {
            true => init.full([d, d], 1e-6) + Tensor::eye(d, init.device()).mul_scalar(1.0 - 1e-6),
            false => init.normal([d, d], STD),
        };
        Self {
            parts,
            query,
            key,
            value: fusion.value.then(|| Param::from_tensor(value)),
            query_before_ln: fusion.query_before_ln,
            regularization: fusion.regularization,
            dropout: DropoutConfig::new(fusion.dropout).init(),
        }
    }

    /// What every adapter adds to the output, `[batch, sequence, adapters, d]`.
    fn added(&self, sublayer: &Sublayer<'_>, pass: &Pass<'_>) -> Tensor<4> {
        let numbered = self.parts.iter().enumerate();
        let added = numbered.filter_map(|(index, tap)| {
            let alone = Sublayer {
                residual: sublayer.residual.clone(),
                output: sublayer.output.clone(),
                norm: sublayer.norm,
            };
            let changed = TapSlot::apply(Some(tap.as_ref()?), alone, &pass.part(index));
            Some(changed - sublayer.output.clone())
        });
        Tensor::stack(added.collect(), 2)
    }

    /// The products of queries and keys, `[batch, sequence, adapters, 1]`.
    pub(super) fn scores(&self, query: Tensor<3>, added: &Tensor<4>) -> Tensor<4> {
        let Some(key) = &self.key else {
            return (query.unsqueeze_dim::<4>(2) * added.clone()).sum_dim(3);
        };
        // q . (K u + b) = (K' q) . u + q . b: one query goes through the matrix in place of the
        // outputs of all adapters.
        let turned = linear(query.clone(), key.weight.val().transpose(), None);
        let products = (turned.unsqueeze_dim::<4>(2) * added.clone()).sum_dim(3);
        match &key.bias {
            Some(bias) => {
                let shift = (query * bias.val().unsqueeze()).sum_dim(2);
                products + shift.unsqueeze_dim::<4>(2)
            }
            None => products,
        }
    }

    /// How far the value matrix is from the identity, times its factor.
    pub(super) fn distance(value: Tensor<2>) -> Tensor<1> {
        let [d, _] = value.dims();
        let identity = Tensor::eye(d, &value.device());
        (value - identity).square().sum().mul_scalar(REGULARIZATION)
    }
}

impl Tap for FusionTap {
    fn forward(&self, sublayer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let added = self.added(&sublayer, pass);
        let query = match self.query_before_ln {
            true => sublayer.output.clone(),
            false => sublayer.summed(),
        };
        let query = match &self.query {
            Some(linear) => linear.apply(query),
            None => query,
        };
        let scores = self.dropout.forward(self.scores(query, &added));
        // The values go through their matrix as one: it is linear, so the order does not matter.
        let context = (softmax(scores, 2) * added).sum_dim(2).squeeze_dim::<3>(2);
        let context = match &self.value {
            None => context,
            Some(value) => {
                if self.regularization && context.device().is_autodiff() {
                    pass.add_loss(Self::distance(value.val()));
                }
                linear(context, value.val(), None)
            }
        };
        sublayer.output + context
    }
    fn settled(&self, pass: &Pass<'_>) -> Option<TapSlot> {
        let parts = settled_parts(&self.parts, pass, TapSlot::settled)?;
        let clone = self.clone();
        Some(TapSlot::new(Self { parts, ..clone }))
    }
}
