//! Random numbers of a run: all follow its seed.

use burn::tensor::Device;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Makes Burn's own random numbers (dropout) follow the seed.
pub fn seed_device(seed: u64, device: &Device) {
    device.seed(ChaCha8Rng::seed_from_u64(seed).random());
}

/// Random numbers of a run for one purpose, so that drawing for one leaves the others' alone.
pub(crate) fn rng(seed: u64, purpose: &str) -> ChaCha8Rng {
    let mut key = [0; 32];
    let bytes = seed.to_le_bytes().into_iter().chain(purpose.bytes());
    key.iter_mut()
        .zip(bytes)
        .for_each(|(key, byte)| *key = byte);
    ChaCha8Rng::from_seed(key)
}
