//! The angles that rotary positions turn queries and keys by.

use burn::tensor::{Int, Tensor, TensorData};

use crate::rope::{Rope, RopeScaling};

/// The angles of a model's positions.
#[derive(Clone, Debug)]
pub(crate) struct Angles {
    rope: Rope,
    head_dim: usize,
    max_positions: usize,
    frequencies: Vec<f32>,
}

impl Angles {
    pub(crate) fn new(rope: Rope, head_dim: usize, max_positions: usize) -> Self {
        let frequencies = frequencies(&rope, head_dim);
        Self {
            rope,
            head_dim,
            max_positions,
            frequencies,
        }
    }

    /// Cosines and sines of every position, `[batch, sequence, head_dim / 2]`.
    pub(crate) fn at(&self, positions: &Tensor<2, Int>) -> (Tensor<3>, Tensor<3>) {
        let ([batch, seq], half) = (positions.dims(), self.head_dim / 2);
        let frequencies = TensorData::new(self.frequencies_for(positions), [1, 1, half]);
        let frequencies = Tensor::<3>::from_data(frequencies, &positions.device());
        let positions = positions.clone().float().reshape([batch, seq, 1]);
        let angles = positions * frequencies;
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        match &self.rope.scaling {
            RopeScaling::Yarn(yarn) => (cos * yarn.attention_factor, sin * yarn.attention_factor),
            _ => (cos, sin),
        }
    }

    fn frequencies_for(&self, positions: &Tensor<2, Int>) -> Vec<f32> {
        let RopeScaling::Dynamic { factor } = self.rope.scaling else {
            return self.frequencies.clone();
        };
        // From the positions of this pass alone: a shorter text later is not stretched.
        let length = positions.clone().max().into_scalar::<i64>() + 1;
        if length <= self.max_positions as i64 {
            return self.frequencies.clone();
        }
        let dim = self.head_dim as f64;
        let ratio = factor * length as f64 / self.max_positions as f64 - (factor - 1.0);
        let theta = self.rope.theta * ratio.powf(dim / (dim - 2.0));
        plain_frequencies(theta, self.head_dim)
            .map(|f| f as f32)
            .collect()
    }
}

/// How far each pair of features turns from one position to the next, without stretching.
fn plain_frequencies(theta: f64, head_dim: usize) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| theta.powf(-((2 * i) as f64) / head_dim as f64))
}

fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let stretched = |(i, f): (usize, f64)| match &rope.scaling {
        // Within its length, a dynamic model does not stretch.
        RopeScaling::Default | RopeScaling::Dynamic { .. } => f,
        RopeScaling::Linear { factor } => f / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original,
        } => {
            let turns = *original as f64 * f / std::f64::consts::TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * f / factor + kept * f
        }
        RopeScaling::Yarn(yarn) => {
            let divided = yarn.divided(i, head_dim, rope.theta);
            f / yarn.factor * divided + f * (1.0 - divided)
        }
    };
    let plain = plain_frequencies(rope.theta, head_dim).enumerate();
    plain.map(|place| stretched(place) as f32).collect()
}
