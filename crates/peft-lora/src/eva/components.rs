//! The principal components of a layer's inputs.

use burn::tensor::{Tensor, TensorData};
use peft_core::{CoreError, Site};

use crate::factor;

/// How the inputs of a layer are spread, gathered batch by batch.
#[derive(Debug, Default)]
pub(super) struct Scatter {
    count: f64,
    /// The mean, `[1, d]`, and the sum of the outer products of what is left without it, `[d, d]`.
    moments: Option<(Tensor<2>, Tensor<2>)>,
}

impl Scatter {
    /// Adds the tokens of a batch, `[batch, sequence, d]`, that count: 1 in `[batch, sequence]`.
    ///
    /// Means and products of two parts are joined as by Chan et al. 1979: sums of squares of the
    /// inputs themselves would lose what varies little beside a large mean.
    pub(super) fn add(&mut self, x: Tensor<3>, counted: Tensor<2>) {
        let [batch, seq, d] = x.dims();
        let (rows, counted) = (
            x.reshape([batch * seq, d]),
            counted.reshape([batch * seq, 1]),
        );
        let count = f64::from(counted.clone().sum().into_scalar::<f32>());
        if count == 0.0 {
            return;
        }
        let mean = (rows.clone() * counted.clone())
            .sum_dim(0)
            .div_scalar(count);
        let centred = (rows - mean.clone()) * counted;
        let products = centred.clone().transpose().matmul(centred);
        let before = self.count;
        self.count += count;
        self.moments = Some(match self.moments.take() {
            None => (mean, products),
            Some((old_mean, old_products)) => {
                let apart = mean - old_mean.clone();
                let between = apart.clone().transpose().matmul(apart.clone());
                let weight = before * count / self.count;
                (
                    old_mean + apart.mul_scalar(count / self.count),
                    old_products + products + between.mul_scalar(weight),
                )
            }
        });
    }

    /// The `most` first components.
    ///
    /// # Errors
    /// If fewer tokens were counted than that takes, or an input was not finite.
    pub(super) fn components(&self, site: &Site, most: usize) -> Result<Components, CoreError> {
        let moments = self.moments.as_ref().filter(|_| self.count > most as f64);
        let Some((_, products)) = moments else {
            let found = format!("so few that `{}` saw {} tokens", site.path, self.count);
            let expected = format!(
                "more than `rank` times `rho` ({most}) tokens in them: raise `batches`, or lower \
                 the rank"
            );
            return Err(CoreError::bad_value("batches", found, &expected));
        };
        let [d, _] = products.dims();
        let variance: f64 = {
            let values = products.clone().into_data().convert::<f32>();
            let diagonal = values.iter::<f32>().step_by(d + 1);
            diagonal.map(f64::from).sum()
        };
        if !variance.is_finite() {
            let key = format!("variance of what goes into {}", site.path);
            return Err(CoreError::bad_value(&key, variance, "finite numbers"));
        }
        let (axes, squares) = factor::axes(products, most);
        // Inputs that never vary explain nothing.
        let share = |square: &f64| square.max(0.0) / variance.max(f64::MIN_POSITIVE);
        Ok(Components {
            shares: squares.iter().map(share).collect(),
            squares,
            axes,
        })
    }
}

/// Directions in which inputs vary, and how much.
#[derive(Clone, Debug)]
pub(super) struct Components {
    /// The share of the variance that each explains, largest first.
    pub(super) shares: Vec<f64>,
    /// The squares of their singular values.
    squares: Vec<f64>,
    /// `[d, components]`, of length 1 each.
    axes: Tensor<2>,
}

impl Components {
    /// The first directions as columns; those that are to be whitened are divided by the roots of
    /// their singular values.
    pub(super) fn first(&self, rank: usize, whiten: bool) -> TensorData {
        let axes = self.axes.clone().narrow(1, 0, rank);
        if !whiten {
            return axes.into_data();
        }
        let root = |square: &f64| (square.max(0.0).sqrt().sqrt() as f32).max(f32::MIN_POSITIVE);
        let roots: Vec<f32> = self.squares[..rank].iter().map(root).collect();
        let roots = Tensor::<2>::from_data(TensorData::new(roots, [1, rank]), &axes.device());
        (axes / roots).into_data()
    }
}
