//! The data of several tasks as those of one.

use anyhow::{Result, ensure};

use super::{Data, told_apart};

/// The data of all tasks, one behind the other, each example with the number of its task.
///
/// # Errors
/// If the answers of two tasks end in different ways.
pub(super) fn joined(tasks: Vec<(Option<&str>, Data)>) -> Result<Data> {
    let mut tasks = tasks.into_iter().enumerate();
    let (_, (name, first)) = tasks
        .next()
        .expect("a task is a task of its own, if no other");
    let first_name = name.unwrap_or_default();
    let mut all = named(first, name);
    for (number, (name, mut data)) in tasks {
        ensure!(
            (data.eos, &data.stop) == (all.eos, &all.stop),
            "the answers of the tasks `{first_name}` and `{}` do not end alike; give both the same \
             `format` and `chat_template`, or study them apart",
            name.unwrap_or_default()
        );
        all.heads.join(data.heads.clone());
        data.become_task(number, all.heads.clone());
        let data = named(data, name);
        all.splits.train.extend(data.splits.train);
        all.splits.dev.extend(data.splits.dev);
        all.splits.test.extend(data.splits.test);
        all.info.extend(data.info);
        all.warnings.extend(data.warnings);
    }
    Ok(all)
}

/// The data with the task's name on what is told of it.
fn named(data: Data, task: Option<&str>) -> Data {
    let Some(name) = task else { return data };
    let info = data.info.into_iter();
    let warnings = data.warnings.into_iter();
    Data {
        info: info
            .map(|(split, info)| (told_apart(task, &split), info))
            .collect(),
        warnings: warnings
            .map(|warning| format!("{name}: {warning}"))
            .collect(),
        ..data
    }
}

#[cfg(test)]
mod tests {
    use report::record::DataInfo;
    use tasks::split::Splits;

    use super::*;
    use crate::data::{Example, Target};
    use crate::heads::Heads;

    fn data(size: usize, eos: u32) -> Data {
        let example = |i: usize| Example {
            task: 0,
            ids: vec![1],
            target: Target::Completion(1),
            input: i.to_string(),
            expected: String::new(),
        };
        let split = || (0..size).map(example).collect();
        let info = DataInfo {
            sha256: size.to_string(),
            examples: size,
        };
        Data {
            splits: Splits {
                train: split(),
                dev: split(),
                test: split(),
            },
            heads: Heads::default(),
            eos: Some(eos),
            stop: None,
            info: [("train".to_string(), info)].into(),
            warnings: vec!["cut".into()],
        }
    }

    #[test]
    fn examples_carry_their_tasks_number_and_what_is_told_its_name() {
        let joined = joined(vec![(Some("a"), data(2, 0)), (Some("b"), data(1, 0))]).unwrap();
        let splits = &joined.splits;
        for split in [&splits.train, &splits.dev, &splits.test] {
            let tasks: Vec<_> = split.iter().map(|example| example.task).collect();
            assert_eq!(tasks, [0, 0, 1]);
        }
        assert_eq!(joined.info["a/train"].examples, 2);
        assert_eq!(joined.info["b/train"].examples, 1);
        assert_eq!(joined.warnings, ["a: cut", "b: cut"]);
    }

    #[test]
    fn a_task_of_its_own_stays_as_it_is() {
        let alone = joined(vec![(None, data(2, 0))]).unwrap();
        assert_eq!(alone.info.keys().collect::<Vec<_>>(), ["train"]);
        assert_eq!(alone.warnings, ["cut"]);
    }

    #[test]
    fn tasks_that_cannot_share_a_model_are_named() {
        let error = joined(vec![(Some("a"), data(1, 0)), (Some("b"), data(1, 7))]);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("`a` and `b` do not end alike"), "{error}");
    }

    /// The data of a task with this many classes, one example of the last.
    fn classes(task: &str, count: usize) -> Data {
        let labels = (0..count).map(|class| class.to_string()).collect();
        let mut data = data(1, 0);
        for example in &mut data.splits.dev {
            example.target = Target::Class {
                output: count - 1,
                of: 0..count,
            };
        }
        let heads = Heads::new(Some(task), labels);
        Data { heads, ..data }
    }

    #[test]
    fn the_classes_of_every_task_are_outputs_of_its_own() {
        let tasks = vec![(Some("a"), classes("a", 2)), (Some("b"), classes("b", 3))];
        let joined = joined(tasks).unwrap();
        let targets: Vec<_> = joined.splits.dev.iter().map(|e| e.target.clone()).collect();
        let class = |output, of| Target::Class { output, of };
        assert_eq!(targets, [class(1, 0..2), class(4, 2..5)]);
        assert_eq!(joined.heads.labels(1), ["0", "1", "2"]);
    }

    #[test]
    fn examples_of_one_task_find_their_place_among_the_heads_of_several() {
        let mut heads = Heads::new(Some("a"), vec!["x".into(), "y".into()]);
        heads.join(classes("b", 3).heads);
        let mut data = classes("b", 3);
        data.become_task(1, heads.clone());
        let example = &data.splits.dev[0];
        let class = Target::Class {
            output: 4,
            of: 2..5,
        };
        assert_eq!((example.task, &example.target), (1, &class));
        data.become_task(1, heads);
        assert_eq!(data.splits.dev[0].target, class, "whatever it was before");
    }
}
