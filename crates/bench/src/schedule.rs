//! Learning-rate schedules: linear warm-up, then linear or cosine decay to zero, or constant.

use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Straight down to zero at the last step.
    #[default]
    Linear,
    /// Half a cosine down to zero.
    Cosine,
    /// No decay.
    Constant,
}

/// The schedule of one training run, as `transformers` computes it.
#[derive(Clone, Debug)]
pub struct Schedule {
    decay: Decay,
    peak: f64,
    warmup: usize,
    steps: usize,
    taken: usize,
    /// The step from which the rate rises again, and over how many.
    rewarm: Option<(usize, usize)>,
}

impl Schedule {
    /// `warmup` steps from zero to `peak`, then the decay until `steps`.
    pub fn new(decay: Decay, peak: f64, warmup: usize, steps: usize) -> Self {
        Self {
            decay,
            peak,
            warmup,
            steps,
            taken: 0,
            rewarm: None,
        }
    }

    /// From the next step on, lets the rate rise from zero to where it would be after `over` steps.
    pub fn rewarm(&mut self, over: usize) {
        self.rewarm = Some((self.taken, over));
    }

    /// The learning rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        match self.rewarm {
            Some((from, over)) if (from..from + over).contains(&step) => {
                self.planned(from + over) * (step - from) as f64 / over as f64
            }
            _ => self.planned(step),
        }
    }

    /// The rate without any new rise.
    fn planned(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let left = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / left).min(1.0);
        match self.decay {
            Decay::Linear => self.peak * (1.0 - done),
            Decay::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Decay::Constant => self.peak,
        }
    }
}

impl LrScheduler for Schedule {
    fn step(&mut self) -> f64 {
        self.taken += 1;
        self.rate(self.taken - 1)
    }

    fn to_record(&self) -> LrSchedulerRecord {
        let (from, over) = self.rewarm.unwrap_or_default();
        LrSchedulerRecord::new()
            .with_scalar("taken", self.taken as u64)
            .with_scalar("rewarm_from", from as u64)
            .with_scalar("rewarm_over", over as u64)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        if let Some(taken) = record.scalar::<u64>("taken") {
            self.taken = taken as usize;
        }
        let rewarm = ["rewarm_from", "rewarm_over"].map(|key| record.scalar::<u64>(key));
        if let [Some(from), Some(over)] = rewarm {
            self.rewarm = (over > 0).then_some((from as usize, over as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_to_zero() {
        let linear = Schedule::new(Decay::Linear, 1.0, 2, 10);
        let rates: Vec<_> = [0, 1, 2, 6, 10].map(|step| linear.rate(step)).into();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.5, 0.0]);
        let cosine = Schedule::new(Decay::Cosine, 1.0, 0, 10);
        assert!((cosine.rate(5) - 0.5).abs() < 1e-12 && cosine.rate(10).abs() < 1e-12);
        assert_eq!(Schedule::new(Decay::Constant, 0.3, 0, 10).rate(9), 0.3);
    }

    #[test]
    fn a_new_rise_starts_at_zero_and_joins_the_decay() {
        let mut linear = Schedule::new(Decay::Linear, 1.0, 0, 10);
        let before: Vec<_> = (0..4).map(|_| LrScheduler::step(&mut linear)).collect();
        assert_eq!(before, [1.0, 0.9, 0.8, 0.7]);
        linear.rewarm(2);
        let mut restored = Schedule::new(Decay::Linear, 1.0, 0, 10);
        restored.load_record(linear.to_record());
        for schedule in [&mut linear, &mut restored] {
            let after: Vec<_> = (0..4).map(|_| LrScheduler::step(schedule)).collect();
            for (found, expected) in after.iter().zip([0.0, 0.2, 0.4, 0.3]) {
                assert!((found - expected).abs() < 1e-12, "{after:?}");
            }
        }
    }

    #[test]
    fn a_schedule_without_warm_up_starts_at_the_peak() {
        assert_eq!(Schedule::new(Decay::Linear, 0.1, 0, 4).rate(0), 0.1);
    }
}
