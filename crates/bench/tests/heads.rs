//! A mixture of tasks of classes, each with labels and outputs of its own: trained, saved, scored and
//! taken elsewhere by the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use peft_core::state;
use serde_json::{Value, json};

/// The words of a language in which every task is learnt from one word.
const WORDS: [&str; 12] = [
    "[UNK]", "[PAD]", "the", "a", "thing", "is", "red", "green", "blue", "good", "bad", "very",
];
/// Label and word of every class; the tasks share label names, in another order.
const COLOUR: [(&str, &str); 3] = [("no", "red"), ("maybe", "green"), ("yes", "blue")];
const POLAR: [(&str, &str); 2] = [("yes", "good"), ("no", "bad")];

/// A folder with a base without a head, data and a study of both tasks.
struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new(family: &str) -> Self {
        let case = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        case.write_base(family);
        case.write_rows("colour", &COLOUR, 60);
        case.write_rows("polar", &POLAR, 30);
        let (colour, polar) = (task("colour").1, task("polar").1);
        let mixture = format!("kind = \"mixture\"\ntemperature = 2.0\n{colour}{polar}");
        case.write_study("mixture", &mixture);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_base(&self, family: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/interop/base")
            .join(family);
        let base = self.path("base");
        fs::create_dir(&base).unwrap();
        fs::copy(from.join("config.json"), base.join("config.json")).unwrap();
        let mut tensors = state::load(&from.join("model.safetensors")).unwrap();
        tensors.retain(|name, _| !name.starts_with("classifier"));
        state::save(
            &tensors,
            Default::default(),
            &base.join("model.safetensors"),
        )
        .unwrap();
        let vocab: serde_json::Map<_, _> = WORDS
            .iter()
            .enumerate()
            .map(|(id, word)| (word.to_string(), id.into()))
            .collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
        });
        fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    }

    /// Rows of a task: a text in which one word tells the class.
    fn write_rows(&self, name: &str, classes: &[(&str, &str)], count: usize) {
        for (split, share) in [("train", 1), ("dev", 2), ("test", 2)] {
            let mut text = String::from("sentence,answer\n");
            for row in 0..count / share {
                let (label, word) = classes[row % classes.len()];
                let article = ["the", "a"][row / 2 % 2];
                let stress = ["", "very "][row / 3 % 2];
                text += &format!("{article} thing is {stress}{word},{label}\n");
            }
            fs::write(self.path(&format!("{name}-{split}.csv")), text).unwrap();
        }
    }

    fn write_study(&self, name: &str, task: &str) {
        let text = format!(
            "name = \"{name}\"\nquestion = \"?\"\nmodel = \"base\"\nseeds = [1]\n[task]\n{task}\n\
             [train]\nepochs = 20\nbatch_size = 6\nlearning_rate = 5e-3\nwarmup = 0.0\n\
             [[method]]\nkind = \"lora\"\n"
        );
        fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    /// What the program says, or the error it ends with.
    fn run(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft-bench"));
        let output = command
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    fn train(&self, study: &str, out: &str) {
        let method = "kind = \"lora\"\nrank = 4\ntargets = \"all-linear\"";
        let args = ["train", study, "--method", method, "--quiet", "--out", out];
        self.run(&args).unwrap();
    }

    fn evaluated(&self, args: &[&str]) -> Result<Value, String> {
        let args = [&["evaluate", "--json"][..], args].concat();
        self.run(&args)
            .map(|text| serde_json::from_str(&text).unwrap())
    }
}

/// A task as a study's own, and as a table of a mixture.
fn task(name: &str) -> (String, String) {
    let keys = format!(
        "kind = \"classification\"\ntext = \"{{{{ sentence }}}}\"\nlabel = \"answer\"\n\
         max_length = 8\nmetric = \"accuracy\"\n\
         data = {{ train = \"{name}-train.csv\", dev = \"{name}-dev.csv\", test = \"{name}-test.csv\" }}\n"
    );
    (keys.clone(), format!("[task.tasks.{name}]\n{keys}"))
}

/// The logits of some rows, one after the other, and how many a row has.
fn logits(case: &Case, args: &[&str]) -> Result<(Vec<f32>, usize), String> {
    let out = case.path("logits.safetensors");
    let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/base/bert");
    let inputs = inputs
        .join("inputs.safetensors")
        .to_string_lossy()
        .into_owned();
    let to = ["logits", "--inputs", &inputs, "--out", "logits.safetensors"];
    case.run(&[&to[..], args].concat())?;
    let logits = state::load(&out).unwrap().remove("logits").unwrap();
    let width = *logits.shape().last().unwrap();
    Ok((logits.try_to_vec().unwrap(), width))
}

#[test]
fn tasks_of_different_labels_train_together_and_are_scored_each_by_its_own_head() {
    for family in ["bert", "roberta"] {
        let case = Case::new(family);
        case.train("mixture.toml", "adapter");
        let about = fs::read_to_string(case.path("adapter/adapter.json")).unwrap();
        let about: Value = serde_json::from_str(&about).unwrap();
        let heads = json!({"colour": ["maybe", "no", "yes"], "polar": ["no", "yes"]});
        assert_eq!((&about["heads"], &about["labels"]), (&heads, &json!([])));

        let all = case
            .evaluated(&["mixture.toml", "--adapter", "adapter"])
            .unwrap();
        let test = &all["test"];
        for task in ["colour", "polar"] {
            let name = format!("accuracy/{task}");
            assert!(test[&name].as_f64().unwrap() > 0.9, "{family}: {all}");
            // The same task alone, and as a study of its own, is asked of the same head.
            let adapter = ["--adapter", "adapter", "--task", task];
            let alone = case
                .evaluated(&[&["mixture.toml"], &adapter[..]].concat())
                .unwrap();
            case.write_study("one", &self::task(task).0);
            let apart = case
                .evaluated(&[&["one.toml"], &adapter[..]].concat())
                .unwrap();
            assert_eq!(alone, apart);
            for metric in ["accuracy", "loss", "macro_f1"] {
                let of_all = &test[&format!("{metric}/{task}")];
                assert_eq!(&alone["test"][metric], of_all, "{family}: {task}");
            }
        }
        let mean = |name: &str| {
            let of = |task| test[format!("{name}/{task}")].as_f64().unwrap();
            (of("colour") + of("polar")) / 2.0
        };
        assert_eq!(test["accuracy"].as_f64().unwrap(), mean("accuracy"));
    }
}

#[test]
fn an_adapter_of_several_heads_is_taken_elsewhere_one_head_at_a_time() {
    let case = Case::new("roberta");
    case.train("mixture.toml", "adapter");
    let base = ["--model", "base", "--adapter", "adapter"];
    for (task, classes) in [("colour", 3), ("polar", 2)] {
        let of_task = [&base[..], &["--task", task]].concat();
        let (expected, width) = logits(&case, &of_task).unwrap();
        assert_eq!(width, classes);
        for format in ["native", "peft"] {
            let out = format!("{task}-{format}");
            let convert = [&["convert", "--to", format, "--out", &out][..], &of_task].concat();
            case.run(&convert).unwrap();
            let (found, _) = logits(&case, &["--model", "base", "--adapter", &out]).unwrap();
            assert_eq!(found.len(), expected.len());
            assert!(
                found
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| (a - b).abs() < 1e-5),
                "{out}"
            );
        }
        let out = format!("{task}-merged");
        case.run(&[&["merge", "--out", &out][..], &of_task].concat())
            .unwrap();
        let (found, _) = logits(&case, &["--model", &out]).unwrap();
        assert!(
            found
                .iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() < 1e-4),
            "{out}"
        );
    }
    let names = "a head for each of the tasks `colour`, `polar`";
    let refused = [
        [&["convert", "--to", "peft", "--out", "x"][..], &base].concat(),
        [&["merge", "--out", "x"][..], &base].concat(),
    ];
    for args in refused {
        let error = case.run(&args).unwrap_err();
        assert!(
            error.contains(names) && error.contains("`--task`"),
            "{error}"
        );
    }
    assert!(logits(&case, &base).unwrap_err().contains(names));
    let error = logits(&case, &[&base[..], &["--task", "size"]].concat()).unwrap_err();
    assert!(
        error.contains("`--task` is `size`, expected one of `colour`, `polar`"),
        "{error}"
    );
}

#[test]
fn heads_and_studies_that_do_not_go_together_are_told() {
    let case = Case::new("bert");
    case.train("mixture.toml", "adapter");
    case.write_study("one", &task("polar").0);
    let adapter = ["--adapter", "adapter"];
    let error = case
        .evaluated(&[&["one.toml"], &adapter[..]].concat())
        .unwrap_err();
    assert!(error.contains("choose by `--task`"), "{error}");
    let as_colour = [&["one.toml", "--task", "colour"], &adapter[..]].concat();
    let error = case.evaluated(&as_colour).unwrap_err();
    assert!(
        error.contains("head for `colour` tells `maybe`, `no`, `yes` apart"),
        "{error}"
    );

    let three = format!(
        "kind = \"mixture\"\n{}{}{}",
        task("colour").1,
        task("polar").1,
        task("polar").1.replace("tasks.polar", "tasks.third")
    );
    case.write_study("three", &three);
    let error = case
        .evaluated(&[&["three.toml"], &adapter[..]].concat())
        .unwrap_err();
    assert!(error.contains("`colour`, `polar`, `third`"), "{error}");
    case.train("one.toml", "alone");
    let error = case.evaluated(&["one.toml", "--adapter", "alone", "--task", "polar"]);
    assert!(
        error
            .unwrap_err()
            .contains("goes with a study of several tasks")
    );
}

#[test]
fn an_unknown_label_is_told_with_its_task_and_row() {
    let case = Case::new("bert");
    let file = case.path("polar-dev.csv");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}a thing is bad,maybe\n")).unwrap();
    let error = case
        .run(&["sweep", "mixture.toml", "--dry-run"])
        .unwrap_err();
    assert!(error.contains("task `polar`"), "{error}");
    assert!(
        error.contains("polar-dev.csv") && error.contains("line 17"),
        "{error}"
    );
    assert!(
        error.contains("`maybe`") && error.contains("`no`, `yes`"),
        "{error}"
    );
}
