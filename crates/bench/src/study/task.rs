//! What a study asks a model to learn, and from which data.

use serde::{Deserialize, Serialize};
use tasks::chat_template::ChatTemplate;
use tasks::layout::Layout;
use tasks::lm::LossOn;
use tasks::metric::Metric;

use super::{DataSource, Limit, Mixture};

/// What the model is to learn.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// Continue a prompt, or answer in a chat.
    Completion {
        /// Where the rows come from.
        data: DataSource,
        /// Template of the prompt over a row's fields.
        #[serde(default = "default_prompt")]
        prompt: String,
        /// Template of the completion.
        #[serde(default = "default_completion")]
        completion: String,
        /// A known layout of the rows, in place of the two templates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<Layout>,
        /// What writes chats as text: a built-in template by name, or a file relative to the study
        /// file; the model's own where not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chat_template: Option<String>,
        /// Which tokens are learned.
        #[serde(default, skip_serializing_if = "LossOn::is_default")]
        loss_on: LossOn,
        /// Most tokens of an example.
        max_length: usize,
        /// Most tokens of a generated answer.
        max_new_tokens: usize,
        /// What the study ranks by.
        metric: Metric,
        /// What to do with completions that do not fit.
        #[serde(default)]
        overlong: tasks::lm::Overlong,
        /// Most examples of each split.
        #[serde(default)]
        limit: Limit,
    },
    /// Put a text into one of several classes.
    Classification {
        /// Where the rows come from.
        data: DataSource,
        /// Template of the text over a row's fields.
        text: String,
        /// Template of a second text, for pairs.
        #[serde(default)]
        pair: Option<String>,
        /// Field of the label.
        label: String,
        /// The labels in the order of their classes; collected from train where not given.
        #[serde(default)]
        labels: Option<Vec<String>>,
        /// Most tokens of an example.
        max_length: usize,
        /// What the study ranks by.
        metric: Metric,
        /// Most examples of each split.
        #[serde(default)]
        limit: Limit,
    },
    /// Several tasks at once.
    Mixture(Mixture),
}

fn default_prompt() -> String {
    "{{ prompt }}".into()
}
fn default_completion() -> String {
    "{{ completion }}".into()
}

impl Task {
    /// What the study ranks by.
    pub fn metric(&self) -> Metric {
        match self {
            Task::Completion { metric, .. } | Task::Classification { metric, .. } => *metric,
            Task::Mixture(mixture) => {
                let first = mixture.tasks.values().next();
                first
                    .expect("a mixture that was checked has tasks")
                    .metric()
            }
        }
    }

    /// The `kind` of study files.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Task::Completion { .. } => "completion",
            Task::Classification { .. } => "classification",
            Task::Mixture(_) => "mixture",
        }
    }

    /// The tasks of a mixture with their names, or the task itself, which needs none.
    pub fn members(&self) -> Vec<(Option<&str>, &Task)> {
        match self {
            Task::Mixture(mixture) => {
                let tasks = mixture.numbered().into_iter();
                tasks.map(|(name, task)| (Some(name), task)).collect()
            }
            Task::Completion { .. } | Task::Classification { .. } => vec![(None, self)],
        }
    }

    pub(super) fn members_mut(&mut self) -> Vec<&mut Task> {
        match self {
            Task::Mixture(mixture) => mixture.tasks.values_mut().collect(),
            Task::Completion { .. } | Task::Classification { .. } => vec![self],
        }
    }

    /// Where the rows come from.
    ///
    /// # Panics
    /// If this is a mixture, whose [`members`](Self::members) have data of their own.
    pub(crate) fn data(&self) -> &DataSource {
        match self {
            Task::Completion { data, .. } | Task::Classification { data, .. } => data,
            Task::Mixture(_) => unreachable!("asked of its members"),
        }
    }

    /// Most examples of each split.
    ///
    /// # Panics
    /// As [`data`](Self::data).
    pub(crate) fn limit(&self) -> &Limit {
        match self {
            Task::Completion { limit, .. } | Task::Classification { limit, .. } => limit,
            Task::Mixture(_) => unreachable!("asked of its members"),
        }
    }

    /// Most tokens of an example, of any task of a mixture.
    pub fn max_length(&self) -> usize {
        match self {
            Task::Completion { max_length, .. } | Task::Classification { max_length, .. } => {
                *max_length
            }
            Task::Mixture(mixture) => {
                let lengths = mixture.tasks.values().map(Task::max_length);
                lengths.max().unwrap_or(0)
            }
        }
    }

    /// Most new tokens of an answer, of any task of a mixture; none where classes are the answers.
    pub fn max_new_tokens(&self) -> Option<usize> {
        match self {
            Task::Completion { max_new_tokens, .. } => Some(*max_new_tokens),
            Task::Classification { .. } => None,
            Task::Mixture(mixture) => mixture
                .tasks
                .values()
                .filter_map(Self::max_new_tokens)
                .max(),
        }
    }

    /// Whether the keys of a completion task agree with each other.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Task::Mixture(mixture) = self {
            return mixture.check();
        }
        self.check_metric()?;
        let Task::Completion {
            prompt,
            completion,
            format,
            chat_template,
            ..
        } = self
        else {
            return Ok(());
        };
        let templates = *prompt != default_prompt() || *completion != default_completion();
        if let (Some(format), true) = (format, templates) {
            let name = format.name();
            return Err(format!(
                "`format = \"{name}\"` has its own prompt and completion; remove `prompt` and \
                 `completion`, or `format`"
            ));
        }
        if chat_template.is_some() && !format.is_some_and(Layout::is_chat) {
            return Err(
                "`chat_template` writes chats; set `format` to `messages` or `sharegpt`, \
                        or remove it"
                    .into(),
            );
        }
        Ok(())
    }

    /// The files it is read from, its chat template included.
    pub(super) fn paths_mut(&mut self) -> Vec<&mut String> {
        let (data, template) = match self {
            Task::Completion {
                data,
                chat_template,
                ..
            } => (data, chat_template.as_mut()),
            Task::Classification { data, .. } => (data, None),
            Task::Mixture(_) => return Vec::new(),
        };
        let template =
            template.filter(|it| ChatTemplate::builtins().all(|name| name != it.as_str()));
        let files = match data {
            DataSource::Files(files) => vec![&mut files.train, &mut files.dev, &mut files.test],
            DataSource::Scenario(_) => Vec::new(),
        };
        files.into_iter().chain(template).collect()
    }

    fn check_metric(&self) -> Result<(), String> {
        let (metric, of_classes) = (self.metric(), matches!(self, Task::Classification { .. }));
        if metric.is_of_classes() == of_classes {
            return Ok(());
        }
        let fitting = Metric::ALL
            .iter()
            .filter(|m| m.is_of_classes() == of_classes);
        let fitting: Vec<_> = fitting.map(|m| format!("`{}`", m.name())).collect();
        Err(format!(
            "`task.metric` is `{}`, which this kind of task does not have; expected one of {}",
            metric.name(),
            fitting.join(", ")
        ))
    }
}
