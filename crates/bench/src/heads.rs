//! The classes a model tells apart, and the tasks they are of.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The classes of a classifier: those of one task, or those of several side by side, each task with
/// outputs of its own. Tasks are numbered in the order of their names, as those of a
/// [`Mixture`](crate::study::Mixture) are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// Names of the classes where there is one task; empty for completions.
    labels: Vec<String>,
    /// Names of the classes of every task of a mixture.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    heads: BTreeMap<String, Vec<String>>,
}

impl Heads {
    /// The head of one task, which has a name in a mixture; no labels make no head.
    pub fn new(task: Option<&str>, labels: Vec<String>) -> Self {
        match task {
            Some(task) if !labels.is_empty() => Self {
                labels: Vec::new(),
                heads: BTreeMap::from([(task.into(), labels)]),
            },
            _ => Self {
                labels,
                heads: BTreeMap::new(),
            },
        }
    }

    /// Puts the heads of other tasks beside these.
    pub(crate) fn join(&mut self, others: Self) {
        self.heads.extend(others.heads);
    }

    /// Outputs of the classifier; none for completions.
    pub fn outputs(&self) -> Option<usize> {
        let own = self.heads.values().map(Vec::len).sum::<usize>() + self.labels.len();
        (own > 0).then_some(own)
    }

    /// Whether the tasks of a mixture have their heads here.
    pub fn are_of_tasks(&self) -> bool {
        !self.heads.is_empty()
    }

    /// Names of the classes of a task by its number.
    pub fn labels(&self, task: usize) -> &[String] {
        self.heads.values().nth(task).unwrap_or(&self.labels)
    }

    /// The outputs that are of a task, by its number.
    pub fn range(&self, task: usize) -> Range<usize> {
        let before: usize = self.heads.values().take(task).map(Vec::len).sum();
        match self.are_of_tasks() {
            true => before..before + self.labels(task).len(),
            false => 0..self.labels.len(),
        }
    }

    /// The number of the task of this name.
    ///
    /// # Errors
    /// If there is none, or no name is given.
    pub fn number(&self, task: Option<&str>) -> Result<usize> {
        let known = self.tasks();
        let task = task.with_context(|| {
            format!("the adapter has a head for each of the tasks {known}; choose by `--task`")
        })?;
        let place = self.heads.keys().position(|name| name == task);
        let place = place.filter(|place| !self.labels(*place).is_empty());
        place.with_context(|| match self.are_of_tasks() {
            true => format!("`--task` is `{task}`, expected one of {known}"),
            false => format!("`--task` is `{task}`, but the adapter has no heads of several tasks"),
        })
    }

    /// Names of all classes in the order of the outputs; where tasks share a classifier with their
    /// task's name, as in `NAME/CLASS`.
    pub fn names(&self) -> Vec<String> {
        let of_tasks = self
            .heads
            .iter()
            .flat_map(|(task, labels)| labels.iter().map(move |label| format!("{task}/{label}")));
        self.labels.iter().cloned().chain(of_tasks).collect()
    }

    /// Refuses heads that are not those of a mixture's tasks, to be scored with them.
    ///
    /// # Errors
    /// If the tasks or the labels of a task differ.
    pub(crate) fn check_same(&self, data: &Self) -> Result<()> {
        if data.outputs().is_none() {
            return Ok(());
        }
        let (own, wanted) = (self.tasks(), data.tasks());
        ensure!(
            own == wanted,
            "the adapter has heads for {own} and the study's tasks are {wanted}, expected the \
             same; score one of them by `--task`"
        );
        for (number, task) in data.heads.keys().enumerate() {
            self.check_labels(number, task, data.labels(number))?;
        }
        Ok(())
    }

    /// Refuses labels that are not those of the head of a task.
    pub(crate) fn check_labels(&self, number: usize, task: &str, labels: &[String]) -> Result<()> {
        let own = self.labels(number);
        ensure!(
            own == labels,
            "the adapter's head for `{task}` tells {} apart and the study's labels are {}; expected \
             the same in the same order: name them by `labels`",
            listed(own),
            listed(labels)
        );
        Ok(())
    }

    fn tasks(&self) -> String {
        let names: Vec<String> = self.heads.keys().cloned().collect();
        listed(&names)
    }
}

fn listed(names: &[String]) -> String {
    match names.is_empty() {
        true => "none".into(),
        false => format!("`{}`", names.join("`, `")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn two() -> Heads {
        let mut heads = Heads::new(Some("polar"), labels(&["no", "yes"]));
        heads.join(Heads::new(Some("nli"), labels(&["no", "maybe", "yes"])));
        heads
    }

    #[test]
    fn every_task_has_outputs_of_its_own_in_the_order_of_the_names() {
        let heads = two();
        assert_eq!(heads.outputs(), Some(5));
        assert_eq!((heads.range(0), heads.range(1)), (0..3, 3..5));
        assert_eq!(heads.labels(1), labels(&["no", "yes"]));
        assert_eq!(heads.number(Some("polar")).unwrap(), 1);
        let names = ["nli/no", "nli/maybe", "nli/yes", "polar/no", "polar/yes"];
        assert_eq!(heads.names(), labels(&names));
    }

    #[test]
    fn a_task_alone_has_all_outputs_whatever_its_number_and_completions_have_none() {
        let alone = Heads::new(None, labels(&["no", "yes"]));
        assert_eq!((alone.range(0), alone.range(4)), (0..2, 0..2));
        assert_eq!(alone.names(), labels(&["no", "yes"]));
        assert!(!alone.are_of_tasks());
        assert_eq!(Heads::new(Some("a"), Vec::new()), Heads::default());
        assert_eq!(Heads::default().outputs(), None);
    }

    #[test]
    fn heads_come_back_from_json_and_those_of_one_task_are_its_labels_alone() {
        let again = |heads: &Heads| -> Heads {
            serde_json::from_value(serde_json::to_value(heads).unwrap()).unwrap()
        };
        let alone = Heads::new(None, labels(&["no", "yes"]));
        assert_eq!((again(&two()), again(&alone)), (two(), alone.clone()));
        let json = serde_json::to_value(alone).unwrap();
        assert_eq!(json, serde_json::json!({"labels": ["no", "yes"]}));
    }

    #[test]
    fn a_head_that_is_not_there_is_answered_with_those_there_are() {
        let told = |heads: &Heads, task| heads.number(task).unwrap_err().to_string();
        assert!(told(&two(), Some("nlu")).contains("expected one of `nli`, `polar`"));
        assert!(told(&two(), None).contains("choose by `--task`"));
        let alone = Heads::new(None, labels(&["no", "yes"]));
        assert!(told(&alone, Some("nli")).contains("no heads of several tasks"));
    }

    #[test]
    fn heads_of_other_tasks_or_labels_are_refused() {
        let heads = two();
        assert!(heads.check_same(&two()).is_ok());
        let fewer = Heads::new(Some("nli"), labels(&["no", "maybe", "yes"]));
        let error = heads.check_same(&fewer).unwrap_err().to_string();
        assert!(error.contains("the study's tasks are `nli`"), "{error}");
        let mut turned = fewer;
        turned.join(Heads::new(Some("polar"), labels(&["yes", "no"])));
        let error = heads.check_same(&turned).unwrap_err().to_string();
        assert!(
            error.contains("head for `polar` tells `no`, `yes`"),
            "{error}"
        );
    }
}
