//! Several tasks that one model learns at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Task;

/// Tasks that share a model and its method. Every batch is of one of them. Tasks of classes have
/// labels and outputs of their own; what lies below the last layer of a head is shared. Outputs that
/// a batch is not about get no gradient from it, though AdamW's decay and momentum go on in them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    /// The tasks by name; methods that go by the task number them from 0 in this order, the
    /// alphabet's.
    pub tasks: BTreeMap<String, Task>,
    /// Flattens the tasks' shares of the batches: a task of n examples is drawn in proportion to
    /// n^(1 / temperature) (Raffel et al. 2020, section 3.5.2). At 1 every example counts alike,
    /// at a high temperature every task.
    #[serde(default = "proportional")]
    pub temperature: f64,
}

fn proportional() -> f64 {
    1.0
}

impl Mixture {
    /// Whether the tasks can be learnt together.
    ///
    /// # Errors
    /// Names the key, what was found and what is expected.
    pub(super) fn check(&self) -> Result<(), String> {
        let temperature = self.temperature;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(format!(
                "`task.temperature` is {temperature}, expected a number above 0"
            ));
        }
        let mut tasks = self.tasks.iter();
        let Some((first_name, first)) = tasks.next() else {
            return Err("`task.tasks` is empty, expected a table for each task".into());
        };
        for (name, task) in &self.tasks {
            let in_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            if name.is_empty() || !name.chars().all(in_name) {
                return Err(format!(
                    "`{name}` names a task, expected letters, digits, `-` and `_`: its scores \
                     carry the name"
                ));
            }
            if matches!(task, Task::Mixture(_)) {
                return Err(format!(
                    "`task.tasks.{name}` is a mixture itself; list its tasks here"
                ));
            }
            task.check()
                .map_err(|error| format!("`task.tasks.{name}`: {error}"))?;
        }
        for (name, task) in tasks {
            let same = [
                ("kind", first.kind(), task.kind()),
                ("metric", first.metric().name(), task.metric().name()),
            ];
            if let Some((key, one, other)) = same.into_iter().find(|(_, one, other)| one != other) {
                return Err(format!(
                    "the `{key}` of `task.tasks.{first_name}` is `{one}` and of \
                     `task.tasks.{name}` `{other}`, expected the same: one model answers all, and the \
                     study ranks by the mean of their scores"
                ));
            }
        }
        Ok(())
    }

    /// Whether the tasks are of classes.
    pub(crate) fn is_of_classes(&self) -> bool {
        let of_classes = |task: &Task| matches!(task, Task::Classification { .. });
        self.tasks.values().any(of_classes)
    }

    /// The tasks with their names, by their numbers.
    pub fn numbered(&self) -> Vec<(&str, &Task)> {
        let tasks = self.tasks.iter();
        tasks.map(|(name, task)| (name.as_str(), task)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXTURE: &str = r#"
        kind = "mixture"
        temperature = 2.0
        [tasks.second]
        kind = "completion"
        data = { train = "a.jsonl", dev = "b.jsonl", test = "c.jsonl" }
        max_length = 48
        max_new_tokens = 8
        metric = "exact_match"
        [tasks.first]
        kind = "completion"
        data = { scenario = 1 }
        max_length = 56
        max_new_tokens = 32
        metric = "exact_match"
    "#;

    fn read(text: &str) -> Task {
        toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refused(from: &str, to: &str) -> String {
        let text = MIXTURE.replacen(from, to, 1);
        assert_ne!(text, MIXTURE);
        match toml::from_str::<Task>(&text) {
            Ok(task) => task.check().unwrap_err(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn tasks_are_numbered_by_the_alphabet_and_the_longest_decides_the_length() {
        let task = read(MIXTURE);
        task.check().unwrap();
        let names: Vec<_> = task.members().iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [Some("first"), Some("second")]);
        assert_eq!(task.max_length(), 56);
        assert_eq!(task.metric().name(), "exact_match");
        let again: Task = serde_json::from_value(serde_json::to_value(&task).unwrap()).unwrap();
        assert_eq!(again.members().len(), 2, "a trial carries it as JSON");
    }

    #[test]
    fn a_mixture_that_makes_no_sense_names_what_is_wrong() {
        for (from, to, named) in [
            (
                "temperature = 2.0",
                "temperature = 0.0",
                "`task.temperature` is 0",
            ),
            ("temperature", "temprature", "temprature"),
            ("max_length = 48", "max_lenght = 48", "max_lenght"),
            ("tasks.second", "tasks.\"a/b\"", "`a/b` names a task"),
            (
                "exact_match",
                "bleu",
                "`metric` of `task.tasks.first` is `exact_match`",
            ),
            (
                "exact_match",
                "accuracy",
                "`task.tasks.second`: `task.metric` is `accuracy`",
            ),
        ] {
            let error = refused(from, to);
            assert!(error.contains(named), "{to}: {error}");
        }
        let none = read("kind = \"mixture\"\ntasks = {}").check().unwrap_err();
        assert!(none.contains("`task.tasks` is empty"), "{none}");
        let inner = MIXTURE.replace("[tasks.", "[tasks.inner.tasks.");
        let inner = inner.replacen("temperature = 2.0", "[tasks.inner]\nkind = \"mixture\"", 1);
        let error = read(&inner).check().unwrap_err();
        assert!(error.contains("`task.tasks.inner` is a mixture"), "{error}");
    }

    #[test]
    fn tasks_of_two_kinds_are_refused() {
        let classes = r#"kind = "classification"
            data = { train = "a.tsv", dev = "b.tsv", test = "c.tsv" }
            text = "{{ sentence }}"
            label = "label"
            metric = "accuracy"
            max_length = 48
            [tasks.third]
        "#;
        let text = MIXTURE.replacen(
            "kind = \"completion\"",
            &format!("{classes}kind = \"completion\""),
            1,
        );
        let error = read(&text).check().unwrap_err();
        assert!(
            error.contains("`kind` of `task.tasks.first` is `completion`"),
            "{error}"
        );
        assert!(error.contains("one model answers all"), "{error}");
    }
}
