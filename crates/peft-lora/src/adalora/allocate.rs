//! The schedule of ranks: how many triplets are kept at which step, and which.

use std::collections::HashMap;

use burn::module::{Param, ParamId};
use burn::tensor::Tensor;
use peft_core::{Consequences, Proj, Regulator, Seams, Site, Step, Surgeon};

use super::{AdaLora, AdaLoraLinear};

/// When the ranks are pruned, and to how many.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pub(super) target_rank: usize,
    pub(super) tinit: usize,
    pub(super) delta_t: usize,
    /// The step of the last pruning.
    pub(super) last: usize,
}

impl Budget {
    /// The schedule over so many steps.
    pub(super) fn over(method: &AdaLora, steps: usize) -> Self {
        Self {
            target_rank: method.target_rank,
            tinit: method.tinit,
            delta_t: method.delta_t,
            last: steps.saturating_sub(method.tfinal),
        }
    }

    /// How many of `all` triplets in so many layers are kept after a step, if it prunes any: a
    /// third power from all of them after the first `tinit` steps to the target at the last.
    pub(super) fn at(&self, step: usize, all: usize, layers: usize) -> Option<usize> {
        let prunes = step > self.tinit && step.is_multiple_of(self.delta_t);
        if step > self.last || !(prunes || step == self.last) {
            return None;
        }
        let target = (self.target_rank * layers).min(all);
        let done = (step - self.tinit) as f64 / (self.last - self.tinit) as f64;
        let above = (all - target) as f64 * (1.0 - done).powi(3);
        Some((above + target as f64) as usize)
    }
}

/// Prunes triplets by their importance, as HF PEFT's `RankAllocator` does.
pub(super) struct Allocator {
    budget: Budget,
    beta1: f64,
    beta2: f64,
    importance: HashMap<ParamId, Importance>,
    /// The triplets that the last pruning kept, by the identity of `e`.
    kept: HashMap<ParamId, Vec<bool>>,
}

impl Allocator {
    pub(super) fn new(method: &AdaLora, steps: usize) -> Self {
        Self {
            budget: Budget::over(method, steps),
            beta1: method.beta1,
            beta2: method.beta2,
            importance: HashMap::new(),
            kept: HashMap::new(),
        }
    }

    /// Follows the importances of a layer's factors.
    fn follow_layer(&mut self, layer: &AdaLoraLinear, step: &Step<'_>) {
        self.follow(&layer.a, step);
        self.follow(&layer.b, step);
        self.follow(&layer.e, step);
    }

    /// Follows the importance of every entry of a parameter; it changes only before the last pruning,
    /// and where there is a gradient.
    fn follow<const D: usize>(&mut self, param: &Param<Tensor<D>>, step: &Step<'_>) {
        let value = param.val().without_autodiff();
        let old = self.importance.remove(&param.id);
        let old = old.unwrap_or_else(|| Importance::none(&value));
        let grad = step.gradients.get::<D>(param.id);
        let new = match grad.filter(|_| step.number < self.budget.last) {
            Some(grad) => old.followed_by((value * grad).abs().reshape([-1]), self),
            None => old,
        };
        self.importance.insert(param.id, new);
    }

    /// The score of every triplet of a layer.
    fn score(&self, layer: &AdaLoraLinear) -> Vec<f32> {
        let a = self.entries(&layer.a).mean_dim(0).reshape([-1]);
        let b = self.entries(&layer.b).mean_dim(1).reshape([-1]);
        let scores: Tensor<1> = self.entries(&layer.e) + a + b;
        scores.into_data().iter::<f32>().collect()
    }

    /// The importance of every entry of a parameter.
    fn entries<const D: usize>(&self, param: &Param<Tensor<D>>) -> Tensor<D> {
        let own = &self.importance[&param.id];
        let entries = own.sensitivity.clone() * own.uncertainty.clone();
        entries.reshape(param.lazy_shape().dims::<D>())
    }
}

/// How much the loss would change without an entry, smoothed, and how sure that is.
struct Importance {
    sensitivity: Tensor<1>,
    uncertainty: Tensor<1>,
}

impl Importance {
    fn none<const D: usize>(value: &Tensor<D>) -> Self {
        let zeros: Tensor<1> = value.zeros_like().reshape([-1]);
        Self {
            sensitivity: zeros.clone(),
            uncertainty: zeros,
        }
    }

    /// Both after one more step, in which entries had these sensitivities.
    fn followed_by(self, now: Tensor<1>, by: &Allocator) -> Self {
        let smooth = |beta: f64, old: Tensor<1>, new: Tensor<1>| {
            old.mul_scalar(beta) + new.mul_scalar(1.0 - beta)
        };
        let sensitivity = smooth(by.beta1, self.sensitivity, now.clone());
        let off = (now - sensitivity.clone()).abs();
        Self {
            uncertainty: smooth(by.beta2, self.uncertainty, off),
            sensitivity,
        }
    }
}

impl Regulator for Allocator {
    fn final_from(&self) -> usize {
        self.budget.last
    }

    fn after_step(&mut self, step: &Step<'_>, model: &mut dyn Seams) -> Consequences {
        if step.number <= self.budget.last {
            let mut layers = Layers(Vec::new());
            model.operate(&mut layers);
            let layers = layers.0;
            layers
                .iter()
                .for_each(|layer| self.follow_layer(layer, step));
            let all = layers.iter().map(AdaLoraLinear::rank).sum();
            if let Some(kept) = self.budget.at(step.number, all, layers.len()) {
                let scores: Vec<_> = layers.iter().map(|layer| self.score(layer)).collect();
                let ids = layers.iter().map(|layer| layer.e.id);
                self.kept = ids.zip(keep_best(&scores, kept)).collect();
                model.operate(&mut Mask(&self.kept));
            }
        } else {
            // The optimizer moves what was pruned, which has a gradient still.
            self.importance.clear();
            model.operate(&mut Mask(&self.kept));
        }
        Consequences::default()
    }
}

/// Of every layer's triplets, those above the highest score that has to go for `count` to be kept.
pub(super) fn keep_best(scores: &[Vec<f32>], count: usize) -> Vec<Vec<bool>> {
    let mut sorted: Vec<f32> = scores.concat();
    sorted.sort_by(f32::total_cmp);
    let pruned = sorted.len().saturating_sub(count);
    let threshold = pruned.checked_sub(1).map(|last| sorted[last]);
    let is_kept = |score: &f32| threshold.is_none_or(|threshold| *score > threshold);
    let layer = |scores: &Vec<f32>| scores.iter().map(is_kept).collect();
    scores.iter().map(layer).collect()
}

/// Collects the layers that have ranks.
struct Layers(Vec<AdaLoraLinear>);

impl Surgeon for Layers {
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        let layer = base.downcast_ref::<AdaLoraLinear>();
        self.0
            .extend(layer.filter(|layer| layer.rank() > 0).cloned());
        base
    }
}

/// Sets the singular values of pruned triplets to zero.
struct Mask<'a>(&'a HashMap<ParamId, Vec<bool>>);

impl Surgeon for Mask<'_> {
    fn projection(&mut self, _site: &Site, base: Proj) -> Proj {
        let layer = base.downcast_ref::<AdaLoraLinear>();
        let found = layer.and_then(|layer| Some((layer, self.0.get(&layer.e.id)?)));
        match found {
            Some((layer, kept)) => Proj::new(layer.clone().masked(kept)),
            None => base,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_falls_as_in_peft() {
        let method = AdaLora {
            init_rank: 12,
            target_rank: 4,
            tinit: 5,
            tfinal: 6,
            delta_t: 3,
            ..AdaLora::default()
        };
        let budget = Budget::over(&method, 30);
        let found: Vec<_> = (0..=30).map(|step| budget.at(step, 48, 4)).collect();
        // From `RankAllocator.budget_schedule` of PEFT 0.21.2, where it prunes at all.
        let theirs = [
            (6, 43),
            (9, 31),
            (12, 24),
            (15, 19),
            (18, 17),
            (21, 16),
            (24, 16),
        ];
        for (step, found) in found.into_iter().enumerate() {
            let expected = theirs.iter().find(|(at, _)| *at == step);
            assert_eq!(found, expected.map(|(_, kept)| *kept), "step {step}");
        }
    }

    #[test]
    fn what_scores_no_more_than_the_threshold_goes_in_whatever_layer_it_is() {
        let scores = [vec![3.0, 1.0, 2.0], vec![5.0, 2.0, 4.0]];
        let kept = keep_best(&scores, 3);
        assert_eq!(kept, [[true, false, false], [true, false, true]]);
        // Two of the same score stay or go together.
        assert_eq!(keep_best(&scores, 4), kept);
        assert_eq!(keep_best(&scores, 6), [[true; 3]; 2]);
    }
}
