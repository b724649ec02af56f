//! Keys and values of the tokens generated so far.

use burn::tensor::Tensor;

/// One pair of keys and values per layer, `[batch, tokens, kv_width]`.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<(Tensor<3>, Tensor<3>)>,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of tokens held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(k, _)| k.dims()[1])
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Appends the new tokens' keys and values of a layer and returns all of them.
    pub(crate) fn extend(
        &mut self,
        layer: usize,
        k: Tensor<3>,
        v: Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let pair = match self.layers.get(layer).cloned() {
            Some((old_k, old_v)) => (
                Tensor::cat(vec![old_k, k], 1),
                Tensor::cat(vec![old_v, v], 1),
            ),
            None => (k, v),
        };
        if layer < self.layers.len() {
            self.layers[layer] = pair.clone();
        } else {
            self.layers.push(pair.clone());
        }
        pair
    }
}
