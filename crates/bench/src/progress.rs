//! What a person sees while a trial runs: a bar on a terminal, plain lines elsewhere, or nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Told of every step of a training run.
pub trait Progress {
    /// Training starts and will take this many steps.
    fn start(&mut self, steps: usize);
    /// A step was taken.
    fn step(&mut self, step: usize, loss: f32, tokens_per_s: f64);
    /// Dev was evaluated.
    fn evaluated(&mut self, epochs: f64, dev: &BTreeMap<String, f64>);
    /// Training is over.
    fn finish(&mut self);
}

/// The right display for standard error: `quiet`, a bar, or lines.
pub fn display(name: &str, quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar {
            name: name.into(),
            bar: ProgressBar::hidden(),
        })
    } else {
        Box::new(Lines {
            name: name.into(),
            steps: 0,
            shown: 0,
        })
    }
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _steps: usize) {}
    fn step(&mut self, _step: usize, _loss: f32, _tokens_per_s: f64) {}
    fn evaluated(&mut self, _epochs: f64, _dev: &BTreeMap<String, f64>) {}
    fn finish(&mut self) {}
}

struct Bar {
    name: String,
    bar: ProgressBar,
}

impl Progress for Bar {
    fn start(&mut self, steps: usize) {
        let template = "{prefix:28!} {bar:30} {pos}/{len} {msg} ETA {eta}";
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        self.bar = ProgressBar::new(steps as u64)
            .with_style(style)
            .with_prefix(self.name.clone());
    }
    fn step(&mut self, step: usize, loss: f32, tokens_per_s: f64) {
        self.bar.set_position(step as u64);
        self.bar
            .set_message(format!("loss {loss:.3} {tokens_per_s:.0} tok/s"));
    }
    fn evaluated(&mut self, _epochs: f64, _dev: &BTreeMap<String, f64>) {}
    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}

struct Lines {
    name: String,
    steps: usize,
    shown: usize,
}

impl Progress for Lines {
    fn start(&mut self, steps: usize) {
        self.steps = steps;
    }
    fn step(&mut self, step: usize, loss: f32, tokens_per_s: f64) {
        // Four lines a run are enough in a log.
        let quarter = step * 4 / self.steps.max(1);
        if quarter > self.shown {
            self.shown = quarter;
            let (name, steps) = (&self.name, self.steps);
            eprintln!("{name}: step {step}/{steps}, loss {loss:.4}, {tokens_per_s:.0} tokens/s");
        }
    }
    fn evaluated(&mut self, epochs: f64, dev: &BTreeMap<String, f64>) {
        let scores: Vec<_> = dev
            .iter()
            .map(|(name, value)| format!("{name} {value:.4}"))
            .collect();
        eprintln!(
            "{}: epoch {epochs:.2}, dev {}",
            self.name,
            scores.join(", ")
        );
    }
    fn finish(&mut self) {}
}
