//! Scores of a model on a split.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::tensor::Device;
use models::{Choice, Generation, Model, generate};
use peft_core::Adapted;
use report::record::Prediction;
use tasks::metric::{Confusion, corpus_bleu, exact_match, sentence_bleu, token_f1};
use tasks::metric::{Metric, perplexity};
use tokenizers::Tokenizer;

use crate::batching::{Targets, by_length, collate};
use crate::data::{Data, Example, Target};
use crate::study::Task;
use crate::trainee::answer_loss;

/// Scores by name, and one row per example.
pub struct Scores {
    /// Metric to value.
    pub values: BTreeMap<String, f64>,
    /// In the order of the split.
    pub predictions: Vec<Prediction>,
}

/// Evaluates a trained (or untrained) model.
pub struct Evaluator<'a> {
    /// The task.
    pub task: &'a Task,
    /// Its data.
    pub data: &'a Data,
    /// Turns generated tokens into text.
    pub tokenizer: &'a Tokenizer,
    /// Examples of a batch.
    pub batch_size: usize,
    /// Where to compute, without gradients.
    pub device: Device,
}

impl Evaluator<'_> {
    /// Cheap scores for the learning curve: the mean loss, for classes also the metrics.
    ///
    /// # Errors
    /// If a metric is not defined for the split.
    pub fn quick(&self, model: &Adapted<Model>, examples: &[Example]) -> Result<Scores> {
        let model = model.valid().steady();
        match self.task {
            Task::Completion { .. } => {
                let loss = self.mean_loss(&model, examples);
                let values = BTreeMap::from([
                    ("loss".to_string(), loss),
                    ("perplexity".to_string(), perplexity(loss)),
                ]);
                Ok(Scores {
                    values,
                    predictions: Vec::new(),
                })
            }
            Task::Classification { .. } => self.classes(&model, examples),
            Task::Mixture(mixture) => {
                self.each(mixture, examples, |task, part| task.quick(&model, part))
            }
        }
    }

    /// Every score of the task.
    ///
    /// # Errors
    /// If a metric is not defined for the split.
    pub fn full(&self, model: &Adapted<Model>, examples: &[Example]) -> Result<Scores> {
        if let Task::Mixture(mixture) = self.task {
            return self.each(mixture, examples, |task, part| task.full(model, part));
        }
        let mut scores = self.quick(model, examples)?;
        if matches!(self.task, Task::Completion { .. }) {
            let answers = self.answers(&model.valid().steady(), examples);
            self.text_scores(&answers, examples, &mut scores)?;
        }
        Ok(scores)
    }

    /// Mean loss of a target token (or example).
    fn mean_loss(&self, model: &Adapted<Model>, examples: &[Example]) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for indices in by_length(examples, self.batch_size) {
            let rows: Vec<_> = indices.iter().map(|index| &examples[*index]).collect();
            let batch = collate(&rows, &model.host, &self.device);
            let weight = match &batch.targets {
                Targets::Tokens { count, .. } => *count,
                Targets::Classes { .. } => rows.len(),
            } as f64;
            let loss: f32 = answer_loss(model, &batch).into_scalar::<f32>();
            sum += f64::from(loss) * weight;
            count += weight;
        }
        sum / f64::max(count, 1.0)
    }

    fn classes(&self, model: &Adapted<Model>, examples: &[Example]) -> Result<Scores> {
        let mut predicted = vec![0; examples.len()];
        let mut losses = vec![0.0; examples.len()];
        let labels = self
            .data
            .heads
            .labels(examples.first().map_or(0, |example| example.task));
        let (truth, outputs): (Vec<_>, Vec<_>) = examples.iter().map(class).unzip();
        let (found, wanted) = (model.host.classes(), self.data.heads.outputs());
        ensure!(
            found == wanted,
            "the model tells {} classes apart, expected the {} of the labels",
            found.unwrap_or(0),
            wanted.unwrap_or(0)
        );
        for indices in by_length(examples, self.batch_size) {
            let rows: Vec<_> = indices.iter().map(|index| &examples[*index]).collect();
            let batch = collate(&rows, &model.host, &self.device).batch;
            let logits = model.host.class_logits(&batch, &model.pass());
            let classes = logits.dims()[1];
            let logits: Vec<f32> = logits.into_data().convert::<f32>().try_to_vec()?;
            for (row, index) in logits.chunks(classes).zip(indices) {
                let row = &row[outputs[index].clone()];
                predicted[index] = largest(row);
                losses[index] = cross_entropy(row, truth[index]);
            }
        }
        let confusion = Confusion::new(&truth, &predicted, labels.len())?;
        let mut values = BTreeMap::from([
            (Metric::Accuracy.name().to_string(), confusion.accuracy()),
            (Metric::MacroF1.name().to_string(), confusion.macro_f1()),
            (Metric::Matthews.name().to_string(), confusion.matthews()),
        ]);
        values.insert(
            "loss".into(),
            losses.iter().sum::<f64>() / losses.len().max(1) as f64,
        );
        let predictions = predicted.iter().zip(&truth).map(|(p, t)| Prediction {
            predicted: labels[*p].clone(),
            expected: labels[*t].clone(),
            score: f64::from(u8::from(p == t)),
        });
        Ok(Scores {
            values,
            predictions: predictions.collect(),
        })
    }

    /// Greedy answers to the examples' prompts.
    pub fn answers(&self, model: &Adapted<Model>, examples: &[Example]) -> Vec<String> {
        let max_new_tokens = match self.task {
            Task::Completion { max_new_tokens, .. } => max_new_tokens,
            Task::Classification { .. } => return Vec::new(),
            Task::Mixture(mixture) => {
                return self
                    .answers_each(mixture, examples, |task, part| task.answers(model, part));
            }
        };
        let generation = Generation {
            task: examples.first().map_or(0, |example| example.task),
            max_new_tokens: *max_new_tokens,
            eos: self.data.eos.into_iter().collect(),
            choice: Choice::Greedy,
        };
        let mut answers = vec![String::new(); examples.len()];
        for indices in by_length(examples, self.batch_size) {
            let prompts: Vec<&[u32]> = indices.iter().map(|i| examples[*i].prompt()).collect();
            let texts = generate(model, &prompts, &generation, &self.device);
            for (index, tokens) in indices.into_iter().zip(texts) {
                let text = self.tokenizer.decode(&tokens, true).unwrap_or_default();
                answers[index] = until(text, self.data.stop.as_deref());
            }
        }
        answers
    }

    fn text_scores(
        &self,
        answers: &[String],
        examples: &[Example],
        scores: &mut Scores,
    ) -> Result<()> {
        let pairs = || answers.iter().zip(examples);
        let mean = |score: &dyn Fn(&str, &str) -> f64| {
            pairs().map(|(a, e)| score(a, &e.expected)).sum::<f64>() / answers.len().max(1) as f64
        };
        let exact = |a: &str, e: &str| f64::from(u8::from(exact_match(a, e)));
        let references: Vec<_> = examples.iter().map(|e| vec![e.expected.clone()]).collect();
        scores.values.extend([
            (Metric::ExactMatch.name().to_string(), mean(&exact)),
            (Metric::TokenF1.name().to_string(), mean(&token_f1)),
            (
                Metric::Bleu.name().to_string(),
                corpus_bleu(answers, &references)?,
            ),
        ]);
        let metric = self.task.metric();
        let own = |answer: &str, expected: &str| match metric {
            Metric::TokenF1 => token_f1(answer, expected),
            Metric::Bleu => sentence_bleu(answer, &[expected.to_string()]),
            _ => exact(answer, expected),
        };
        scores.predictions = pairs()
            .map(|(answer, example)| Prediction {
                predicted: answer.clone(),
                expected: example.expected.clone(),
                score: own(answer, &example.expected),
            })
            .collect();
        Ok(())
    }
}

/// The text before the mark that ends an answer.
fn until(mut text: String, stop: Option<&str>) -> String {
    if let Some(end) = stop.and_then(|stop| text.find(stop)) {
        text.truncate(end);
    }
    text
}

/// The class of an example among those of its task, and the outputs that are of them.
fn class(example: &Example) -> (usize, Range<usize>) {
    match &example.target {
        Target::Class { output, of } => (output - of.start, of.clone()),
        Target::Completion(_) | Target::Parts { .. } => {
            unreachable!("a classification task has classes")
        }
    }
}

fn largest(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
    (0..row.len()).fold(0, better)
}

fn cross_entropy(row: &[f32], class: usize) -> f64 {
    let highest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|v| (f64::from(*v) - highest).exp()).sum();
    highest + sum.ln() - f64::from(row[class])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes() {
        assert!((cross_entropy(&[3.0, 3.0], 1) - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn an_answer_ends_where_its_mark_starts() {
        let text = || "Yes<|im_end|>\nno".to_string();
        assert_eq!(until(text(), Some("<|im_end|>")), "Yes");
        assert_eq!(until(text(), Some("</s>")), text());
        assert_eq!(until(text(), None), text());
    }

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(largest(&[1.0, 4.0, 4.0]), 1);
    }
}
