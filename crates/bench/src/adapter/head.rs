//! One head of an adapter that has several: the rows of its task in the classifier they share.

use std::ops::Range;

use anyhow::{Result, ensure};
use burn::tensor::TensorData;
use peft_core::exchange::path_ends_with;

use super::{Format, Opened, native};
use crate::heads::Heads;

/// The parameters of the last layer of every head, whose last axis is that of the classes.
const LAST_LAYER: [&str; 2] = ["classifier.weight", "classifier.bias"];

impl Opened {
    /// The classes of the tasks it was trained on, where it says them.
    pub fn heads(&self) -> Heads {
        match self.format {
            Format::Native => native::heads(&self.config),
            Format::Peft | Format::AdapterHub => Heads::default(),
        }
    }

    /// The adapter with the head of this task alone, as if it had been trained on no other; `None`
    /// for one that has no more.
    ///
    /// # Errors
    /// If it has no head of the name, or has several and none is named.
    pub fn of_task(mut self, task: Option<&str>) -> Result<Self> {
        let heads = self.heads();
        if task.is_none() && !heads.are_of_tasks() {
            return Ok(self);
        }
        let number = heads.number(task)?;
        let (outputs, range) = (heads.outputs().unwrap_or(0), heads.range(number));
        let mut left = 0;
        for (name, data) in &mut self.tensors {
            if LAST_LAYER.iter().any(|last| path_ends_with(name, last)) {
                let own = part(name, data, outputs, range.clone())?;
                left += data.num_elements() - own.num_elements();
                *data = own;
            }
        }
        // The head counts as a part of the base.
        if let Some(count) = self.config.get_mut("base_parameters") {
            let others = count.as_u64().unwrap_or(0).saturating_sub(left as u64);
            *count = others.into();
        }
        self.config.remove("heads");
        self.config
            .insert("labels".into(), heads.labels(number).into());
        Ok(self)
    }
}

/// A range of the last axis, which has this length.
fn part(name: &str, data: &TensorData, length: usize, range: Range<usize>) -> Result<TensorData> {
    let mut shape = data.shape().to_vec();
    let found = shape.last().copied().unwrap_or(0);
    ensure!(
        found == length,
        "`{name}` has {found} outputs, expected the {length} of the heads it is described to hold"
    );
    let values: Vec<f32> = data.iter::<f32>().collect();
    let rows = values.chunks(length.max(1));
    let kept: Vec<f32> = rows.flat_map(|row| &row[range.clone()]).copied().collect();
    if let Some(last) = shape.last_mut() {
        *last = range.len();
    }
    Ok(TensorData::new(kept, shape))
}
