//! What a sweep checks before its first trial, and the list of the trials.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use burn::tensor::Device;
use models::Model;
use peft_core::{Adapted, Geometry, Host, Init, Method, adapt, trained};
use tokenizers::Tokenizer;

use crate::budget;
use crate::data::{self, Data, Tables};
use crate::groups::{self, Groups};
use crate::layer_drop::{self, AdapterDrop};
use crate::memory::{self, Load};
use crate::parts;
use crate::registry::Registry;
use crate::study::Study;
use crate::trial::Trial;

/// Checks what every trial would stumble over, once and before any is run: the data, and every
/// method on the real model.
pub(super) struct Check<'a> {
    pub(super) study: &'a Study,
    pub(super) tables: &'a Tables,
    pub(super) registry: &'a Registry,
}

/// The model and the data of the study.
struct Base {
    model: Model,
    geometry: Geometry,
    data: Data,
    tokenizer: Tokenizer,
    device: Device,
}

impl Base {
    /// The trials with texts of their methods as tokens.
    fn tokenized(&self, trials: &[Trial]) -> Result<Vec<Trial>> {
        let trials = trials.iter();
        trials
            .map(|trial| trial.tokenized(&self.tokenizer))
            .collect()
    }
}

impl Check<'_> {
    /// A list of the trials to be run, which are some of the study or all.
    ///
    /// # Errors
    /// If the data, a method or a training setting does not go with the model.
    pub(super) fn listing(&self, study: &[Trial], wanted: &[Trial]) -> Result<String> {
        let base = self.base()?;
        let [study, wanted] = [base.tokenized(study)?, base.tokenized(wanted)?];
        let geometry = &base.geometry;
        layer_drop::check_on(&self.study.train, geometry.layers).map_err(Error::msg)?;
        if groups::has_names(&self.study.train) {
            self.check_groups(&study, &base)?;
        }
        let total = geometry.base_parameters() - geometry.task_head_parameters();
        let mut lines = format!("base: {total} parameters\n");
        let mut left_out = HashMap::new();
        for trial in &wanted {
            let bytes = match left_out.get(&trial.label) {
                Some(bytes) => *bytes,
                None => self.left_out(trial, &base)?,
            };
            left_out.insert(&trial.label, bytes);
            lines += &self.line(trial, &base, bytes)?;
        }
        let trials = match wanted.len() {
            1 => "1 trial".into(),
            count => format!("{count} trials"),
        };
        Ok(format!("{lines}{trials}\n"))
    }

    fn base(&self) -> Result<Base> {
        let (task, folder) = (&self.study.task, Path::new(&self.study.model));
        // What trains is known on a device that tracks gradients.
        let device = peft_core::device("cpu")?.autodiff();
        let loaded = self.tables.base(task, folder, &mut Init::new(0, &device))?;
        let (data, tokenizer) = data::examples(task, folder, self.tables, &loaded)?;
        Ok(Base {
            geometry: loaded.model.geometry(),
            model: loaded.model,
            data,
            tokenizer,
            device,
        })
    }

    /// Checks one trial; a line of what it takes. So many bytes of its parameters are left out.
    fn line(&self, trial: &Trial, base: &Base, left_out: u64) -> Result<String> {
        let trial = &trial.tokenized(&base.tokenizer)?;
        let (model, method) = (&base.model, trial.method(self.registry)?);
        let at = || of_method(trial);
        method.check(&base.geometry).with_context(at)?;
        trial.check_method(self.registry)?;
        let offset = method.position_offset();
        base.data
            .check_positions(&self.study.task, offset, model.max_length())
            .with_context(at)?;
        let load = Load::of(&trial.train, base.data.longest());
        let memory = memory::predict(model, &*method, &trial.storage, load);
        let memory = memory::without(memory, left_out);
        let shape = peft_core::geometry_for(model, &*method);
        let trained = peft_core::trained_parameters(&shape, &*method) as u64 - left_out / 4;
        let peak = memory::human(memory.predicted_peak);
        Ok(format!(
            "{:<44} {trained:>12} trained  {peak:>10} predicted\n",
            trial.id
        ))
    }

    /// Makes the groups of parameters of every method, and checks that each name means something to
    /// one of them.
    fn check_groups(&self, study: &[Trial], base: &Base) -> Result<()> {
        let mut all = Vec::new();
        for (index, trial) in study.iter().enumerate() {
            if study[..index].iter().any(|seen| seen.label == trial.label) {
                continue;
            }
            let method = self.method(trial, base)?;
            let at = || of_method(trial);
            let model = base.with(&*method).with_context(at)?;
            Groups::new(&model, &*method, &trial.train).with_context(at)?;
            all.extend(trained(&model));
        }
        groups::check_used(&self.study.train, &all)
    }

    fn method(&self, trial: &Trial, base: &Base) -> Result<Arc<dyn Method>> {
        Ok(trial.tokenized(&base.tokenizer)?.method(self.registry)?)
    }

    /// Bytes of a trial's parameters that take no part in training.
    fn left_out(&self, trial: &Trial, base: &Base) -> Result<u64> {
        if !matches!(
            trial.train.adapter_drop,
            Some(AdapterDrop::Specialized { .. })
        ) {
            return Ok(0);
        }
        let method = self.method(trial, base)?;
        let model = base.with(&*method).with_context(|| of_method(trial))?;
        Ok(budget::left_out(&model, &trial.train))
    }
}

impl Base {
    /// The model with a method in it. How weights are stored is no matter here, nor where it starts.
    fn with(&self, method: &dyn Method) -> Result<Adapted<Model>> {
        method.check(&self.geometry)?;
        parts::bring(method, &self.model, &self.device)?;
        let blank = method.without_start();
        let method = blank.as_deref().unwrap_or(method);
        let mut init = Init::new(0, &self.device);
        Ok(adapt(self.model.clone(), method, None, &mut init)?)
    }
}

fn of_method(trial: &Trial) -> String {
    format!("method `{}`", trial.label)
}

#[cfg(test)]
mod tests;
