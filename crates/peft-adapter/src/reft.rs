//! Low-rank edits of hidden states, and the orthonormal matrices they project with.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use peft_core::{Init, Pass, Sublayer, Tap, kernels};

/// Sizes of an edit.
#[derive(Clone, Copy, Debug)]
pub struct UnitShape {
    /// Width of the model.
    pub d: usize,
    /// Rank.
    pub r: usize,
}

/// `x + (x S + b - x R) R^T`, or without `x R` in it.
#[derive(Module, Debug)]
pub struct Unit {
    /// `S`, `[d, r]`
    source: Param<Tensor<2>>,
    /// `[r]`
    source_bias: Param<Tensor<1>>,
    /// `R`, `[d, r]`; with a basis Householder vectors below the diagonal, the rest without effect.
    projection: Param<Tensor<2>>,
    dropout: Dropout,
    #[module(skip)]
    basis: Option<usize>,
    subtracts: bool,
}

impl Unit {
    /// An edit; with the index of a basis its projection is orthonormal.
    pub fn new(shape: UnitShape, basis: Option<usize>, init: &mut Init) -> Self {
        let UnitShape { d, r } = shape;
        let projection = match basis {
            // No reflection: the projection is the basis' own.
            Some(_) => identity([d, r], init),
            None => init.kaiming_uniform([d, r], d),
        };
        Self {
            source: Param::from_tensor(init.kaiming_uniform([d, r], d)),
            source_bias: Param::from_tensor(init.kaiming_uniform([r], d)),
            projection: Param::from_tensor(projection),
            dropout: DropoutConfig::new(0.0).init(),
            basis,
            subtracts: true,
        }
    }

    /// The edit with or without what the projection finds in the state taken off.
    #[must_use]
    pub fn subtracting(self, subtracts: bool) -> Self {
        Self { subtracts, ..self }
    }

    /// The edit with dropout on edited states while training.
    #[must_use]
    pub fn with_dropout(self, dropout: f64) -> Self {
        let dropout = DropoutConfig::new(dropout).init();
        Self { dropout, ..self }
    }

    /// The edit, not trained.
    #[must_use]
    pub fn frozen(self) -> Self {
        self.no_grad()
    }

    /// `R`, `[d, r]`.
    fn projection(&self, pass: &Pass<'_>) -> Tensor<2> {
        let projection = self.projection.val();
        match self.basis {
            Some(index) => pass.shared::<Bases>().bases[index].reflect(projection),
            None => projection,
        }
    }

    /// What the edit adds to the states.
    fn change(&self, x: Tensor<3>, pass: &Pass<'_>) -> Tensor<3> {
        let projection = self.projection(pass);
        let source = kernels::linear(x.clone(), self.source.val(), Some(self.source_bias.val()));
        let edit = match self.subtracts {
            true => source - kernels::linear(x.clone(), projection.clone(), None),
            false => source,
        };
        let change = kernels::linear(edit, projection.transpose(), None);
        // Dropout is on the whole edited state, not on what was added to it.
        self.dropout.forward(x.clone() + change) - x
    }
}

/// Ones on the diagonal, zeros elsewhere.
fn identity([rows, columns]: [usize; 2], init: &Init) -> Tensor<2> {
    let row = Tensor::eye(rows, init.device());
    row.narrow(1, 0, columns)
}

/// The frozen parts of the orthonormal projections of a whole model.
#[derive(Module, Debug)]
pub struct Bases {
    bases: Vec<Basis>,
}

/// `R = base H_1 ... H_r` cut to `r` columns of these signs, where `H_i` are the reflections of a
/// unit.
#[derive(Module, Debug)]
struct Basis {
    /// `[d, d]`, orthogonal
    base: Param<Tensor<2>>,
    /// `[r]`; the whole part of a number counts, as in PyTorch.
    signs: Param<Tensor<1>>,
}

impl Bases {
    /// Random bases of this width for projections to `r` columns.
    pub fn new(count: usize, d: usize, r: usize, init: &mut Init) -> Self {
        Self {
            bases: (0..count).map(|_| Basis::new(d, r, init)).collect(),
        }
    }
}

impl Basis {
    fn new(d: usize, r: usize, init: &mut Init) -> Self {
        // Stewart 1980: the reflection for column `k` moves it to a random place and leaves those
        // before it where they are, so that all columns together lie in no direction more than in
        // another. One reflection about a random vector would leave each of them near its own axis.
        let eye = identity([d, d], init);
        let base = (0..r).rev().fold(eye, |base, column| {
            let v = towards_random(d, column, init);
            reflected(base, v)
        });
        let frozen = |tensor: Tensor<2>| Param::from_tensor(tensor).set_require_grad(false);
        let signs = Param::from_tensor(init.full([r], 1.0)).set_require_grad(false);
        Self {
            base: frozen(base),
            signs,
        }
    }

    /// The projection whose Householder vectors stand below the diagonal of `vectors`, `[d, r]`.
    fn reflect(&self, vectors: Tensor<2>) -> Tensor<2> {
        let [d, r] = vectors.dims();
        let device = vectors.device();
        let eye = Tensor::<2>::eye(d, &device).narrow(1, 0, r);
        let vectors = vectors.tril(-1) + eye.clone();
        let reflect = |q, column| reflected(q, vectors.clone().narrow(1, column, 1));
        let q = (0..r).rev().fold(eye, reflect);
        let signs = self.signs.val();
        // Towards zero, also for the 0.999 that weight decay made of a 1.
        let signs = signs.clone().sign() * signs.abs().floor();
        self.base.val().matmul(q) * signs.unsqueeze()
    }
}

/// The vector about which a reflection moves axis `column` to a random place among the axes from
/// there on, `[d, 1]`.
fn towards_random(d: usize, column: usize, init: &mut Init) -> Tensor<2> {
    let place = init.normal([d - column, 1], 1.0);
    let length = place.clone().square().sum().sqrt().unsqueeze::<2>();
    let first = place.clone().narrow(0, 0, 1);
    let moved = first.clone() + first.sign() * length;
    let place = place.slice_assign([0..1, 0..1], moved);
    Tensor::zeros([d, 1], init.device()).slice_assign([column..d, 0..1], place)
}

/// `(I - 2 v v^T / |v|^2) q`
fn reflected(q: Tensor<2>, v: Tensor<2>) -> Tensor<2> {
    let along = v.clone().transpose().matmul(q.clone());
    let scale = (v.clone() * v.clone()).sum().recip().mul_scalar(2.0);
    q - v.matmul(along) * scale.unsqueeze()
}

/// Edits the first and the last positions of every text. What a language model is to write is no
/// part of the text, in training as in generation.
#[derive(Module, Debug)]
pub struct Reft {
    /// One for the first and one for the last positions, or one for both.
    units: Vec<Unit>,
    #[module(skip)]
    positions: [usize; 2],
}

impl Reft {
    /// Edits of as many first and last positions.
    pub fn new(units: Vec<Unit>, positions: [usize; 2]) -> Self {
        Self { units, positions }
    }
}

impl Tap for Reft {
    fn forward(&self, layer: Sublayer<'_>, pass: &Pass<'_>) -> Tensor<3> {
        let x = layer.output;
        let text = pass.text();
        if text.seen > 0 {
            // Tokens being generated are no part of the text.
            return x;
        }
        let [batch, length, _] = x.dims();
        let mask = text.mask;
        let mask = mask.unwrap_or_else(|| Tensor::ones([batch, length], &x.device()));
        let mask = match text.prompt {
            Some(prompt) => mask * prompt,
            None => mask,
        };
        let [first, last] = selected(mask, self.positions);
        // Where both would edit, the later one does, as in AdapterHub.
        let first = first * last.clone().neg().add_scalar(1.0);
        let mut edited = x.clone();
        for (index, (count, at)) in self.positions.into_iter().zip([first, last]).enumerate() {
            if count > 0 {
                let unit = &self.units[index.min(self.units.len() - 1)];
                edited = edited + unit.change(x.clone(), pass) * at.unsqueeze_dim(2);
            }
        }
        edited
    }
}

/// Ones at the first positions from the first given token on, and at the last ones before the end of
/// the given tokens, each `[batch, sequence]`; nothing that is not given is among them.
fn selected(mask: Tensor<2>, [first, last]: [usize; 2]) -> [Tensor<2>; 2] {
    let [batch, length] = mask.dims();
    let at = Tensor::<1, burn::tensor::Int>::arange(0..length as i64, &mask.device()).float();
    let at = at.unsqueeze::<2>().expand([batch, length]);
    let from_end = at.clone().neg().add_scalar(length as f32);
    let start = (mask.clone() * from_end)
        .max_dim(1)
        .neg()
        .add_scalar(length as f32);
    let end = start.clone() + mask.sum_dim(1);
    let within = |at: Tensor<2>, from: Tensor<2>, to: Tensor<2>| {
        let (from, to) = (from.expand([batch, length]), to.expand([batch, length]));
        at.clone().greater_equal(from).float() * at.lower(to).float()
    };
    let first = start.clone().add_scalar(first as f32);
    let last = end.clone().sub_scalar(last as f32);
    [
        within(at.clone(), start.clone(), first.min_pair(end.clone())),
        within(at, last.max_pair(start), end),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData, Tolerance};

    #[test]
    fn positions_are_counted_from_the_first_real_token_to_the_last() {
        let mask = [
            [1.0f32, 1.0, 1.0, 1.0, 1.0],
            [0.0, 0.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 0.0, 0.0],
        ];
        let mask = Tensor::<2>::from_data(TensorData::from(mask), &Device::flex());
        let rows = |t: Tensor<2>| t.into_data().try_to_vec::<f32>().unwrap();
        let [first, last] = selected(mask, [2, 1]);
        let expected = [
            1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0,
        ];
        assert_eq!(rows(first), expected);
        let expected = [
            0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0,
        ];
        assert_eq!(rows(last), expected);
    }

    #[test]
    fn a_text_shorter_than_the_positions_is_edited_to_its_end_and_no_further() {
        let mask = [[1.0f32, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]];
        let mask = Tensor::<2>::from_data(TensorData::from(mask), &Device::flex());
        let expected = mask.to_data();
        for edited in selected(mask, [3, 3]) {
            assert_eq!(edited.into_data(), expected);
        }
    }

    #[test]
    fn a_random_projection_lies_no_nearer_to_the_first_axes_than_to_others() {
        let (d, r, draws) = (64, 2, 300);
        let mut init = Init::new(6, &Device::flex());
        let mut squares = 0.0;
        for _ in 0..draws {
            let basis = Basis::new(d, r, &mut init);
            let start = identity([d, r], &init);
            let own = basis.reflect(start).narrow(0, 0, r).into_data();
            let own: Vec<f64> = own.convert::<f64>().try_to_vec().unwrap();
            let [a, b, c, e] = own[..] else {
                panic!("{own:?}")
            };
            // The principal cosines are the singular values of this block.
            let (sum, product) = (own.iter().map(|x| x * x).sum::<f64>(), a * e - b * c);
            let largest = (sum + (sum * sum - 4.0 * product * product).max(0.0).sqrt()) / 2.0;
            assert!(
                largest.sqrt() < 0.75,
                "a principal cosine of {}",
                largest.sqrt()
            );
            squares += sum;
        }
        // Uniform subspaces have squared cosines of r^2 / d in sum.
        let (mean, expected) = (squares / f64::from(draws), (r * r) as f64 / d as f64);
        assert!(
            (mean / expected - 1.0).abs() < 0.2,
            "{mean}, not {expected}"
        );
    }

    #[test]
    fn reflections_keep_the_columns_orthonormal() {
        let device = Device::flex();
        let mut init = Init::new(2, &device);
        let basis = Basis::new(7, 3, &mut init);
        let q = basis.reflect(init.normal([7, 3], 1.0));
        let gram = q.clone().transpose().matmul(q).into_data();
        let eye = Tensor::<2>::eye(3, &device).into_data();
        gram.assert_approx_eq::<f32>(&eye, Tolerance::absolute(1e-5));
    }

    #[test]
    fn a_sign_just_below_one_turns_its_column_off() {
        let device = Device::flex();
        let mut init = Init::new(2, &device);
        let mut basis = Basis::new(5, 2, &mut init);
        basis.signs = Param::from_tensor(Tensor::from_data([-1.0f32, 0.999], &device));
        let q = basis.reflect(init.normal([5, 2], 1.0));
        let norms: Vec<f32> = (q.clone() * q).sum_dim(0).into_data().try_to_vec().unwrap();
        assert!(
            (norms[0] - 1.0).abs() < 1e-5 && norms[1] == 0.0,
            "{norms:?}"
        );
    }
}
