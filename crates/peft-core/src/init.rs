//! Initial values, drawn on the host from a seed so that every backend starts from the same numbers.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng, distr::Uniform};
use rand_chacha::ChaCha8Rng;

/// A seeded source of initial tensors on one device.
pub struct Init {
    rng: ChaCha8Rng,
    device: Device,
}

impl Init {
    /// A source that always gives the same sequence for the same seed.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            device: device.clone(),
        }
    }

    /// The device tensors are made on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Zeros.
    pub fn zeros<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::zeros(shape, &self.device)
    }

    /// The same value everywhere.
    pub fn full<const D: usize>(&self, shape: [usize; D], value: f64) -> Tensor<D> {
        Tensor::full(shape, value, &self.device)
    }

    /// Independent normal values of mean 0.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Tensor<D> {
        let values = (0..shape.iter().product::<usize>())
            .map(|_| (standard_normal(&mut self.rng) * std) as f32)
            .collect();
        self.tensor(values, shape)
    }

    /// Independent normal values of mean 0, those beyond two deviations drawn again, as PyTorch's
    /// `trunc_normal_` does with bounds of two deviations.
    pub fn truncated_normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Tensor<D> {
        let mut draw = || loop {
            let value = standard_normal(&mut self.rng);
            if value.abs() <= 2.0 {
                return (value * std) as f32;
            }
        };
        let values = (0..shape.iter().product::<usize>())
            .map(|_| draw())
            .collect();
        self.tensor(values, shape)
    }

    /// Independent uniform values in `[-bound, bound)`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f64) -> Tensor<D> {
        let values = if bound > 0.0 {
            let range = Uniform::new(-bound, bound).expect("the bound is positive and finite");
            (0..shape.iter().product::<usize>())
                .map(|_| self.rng.sample(range) as f32)
                .collect()
        } else {
            vec![0.0; shape.iter().product()]
        };
        self.tensor(values, shape)
    }

    /// Independent whole numbers from 0 to below `below`.
    ///
    /// # Panics
    /// If `below` is 0.
    pub fn indices(&mut self, count: usize, below: usize) -> Vec<usize> {
        let below = below as u64;
        let draw = |_| self.rng.random_range(0..below) as usize;
        (0..count).map(draw).collect()
    }

    /// `torch.nn.init.kaiming_uniform_(a=sqrt(5))`: uniform within `1 / sqrt(fan_in)`, the start of
    /// PyTorch's linear layers and of PEFT's LoRA `A`.
    pub fn kaiming_uniform<const D: usize>(
        &mut self,
        shape: [usize; D],
        fan_in: usize,
    ) -> Tensor<D> {
        self.uniform(shape, 1.0 / (fan_in.max(1) as f64).sqrt())
    }

    fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }
}

/// One standard normal value by Box and Muller's polar method without the rejected half: two
/// uniforms give one value, so the number of draws never depends on the values drawn.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64) -> Vec<f32> {
        let mut init = Init::new(seed, &Device::flex());
        init.normal([64, 64], 0.5).into_data().try_to_vec().unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_values_and_another_seed_others() {
        assert_eq!(values(3), values(3));
        assert_ne!(values(3), values(4));
    }

    #[test]
    fn normal_values_have_the_mean_and_spread_asked_for() {
        let v = values(1);
        let mean = v.iter().sum::<f32>() / v.len() as f32;
        let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / v.len() as f32;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((var.sqrt() - 0.5).abs() < 0.02, "std {}", var.sqrt());
    }

    #[test]
    fn truncated_normal_values_end_at_two_deviations_and_spread_as_the_cut_normal_does() {
        let mut init = Init::new(2, &Device::flex());
        let values = init.truncated_normal([64, 64], 0.5).into_data();
        let v: Vec<f32> = values.try_to_vec().unwrap();
        assert!(v.iter().all(|x| x.abs() <= 1.0) && v.iter().any(|x| x.abs() > 0.95));
        let var = v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32;
        // 1 - 2 * 2 * density(2) / (2 * cdf(2) - 1), times the variance.
        assert!((var - 0.7737 * 0.25).abs() < 0.01, "variance {var}");
    }

    #[test]
    fn kaiming_uniform_has_the_bound_and_variance_of_pytorch() {
        let mut init = Init::new(1, &Device::flex());
        let v: Vec<f32> = init
            .kaiming_uniform([100, 50], 100)
            .into_data()
            .try_to_vec()
            .unwrap();
        assert!(v.iter().all(|x| x.abs() <= 0.1));
        let std = (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt();
        assert!((std - 1.0 / 300f32.sqrt()).abs() < 2e-3, "std {std}");
    }
}
