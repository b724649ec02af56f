//! Conversations with a small model of random weights.

use std::path::Path;

use models::{Gpt2Config, Model};
use peft_core::Init;

use super::*;
use crate::adapters::AdapterArg;
use crate::storage::StorageSpec;

#[derive(Default)]
struct Recorder {
    said: String,
    notes: Vec<String>,
}

impl Screen for Recorder {
    fn say(&mut self, text: &str) -> Result<()> {
        self.said += text;
        Ok(())
    }
    fn note(&mut self, line: &str) {
        self.notes.push(line.into());
    }
}

/// Writes a model of 64 positions, of another start for each seed.
fn model(folder: &Path, seed: u64) {
    let mut config = Gpt2Config::new(300, 64, 16, 2, 2);
    config.initializer_range = 0.5;
    let json = serde_json::json!({
        "model_type": "gpt2", "vocab_size": 300, "n_positions": 64, "n_embd": 16, "n_layer": 2,
        "n_head": 2, "eos_token_id": 0
    });
    let mut init = Init::new(seed, &Device::flex());
    models::save(
        &Model::random_gpt2(config, &mut init).unwrap(),
        &json,
        folder,
    )
    .unwrap();
    let texts = ["User: hello there\nAssistant: hello".to_string()];
    let tokenizer = tasks::tokenizer::train_bpe(&texts, 300).unwrap();
    tokenizer
        .save(folder.join("tokenizer.json"), false)
        .unwrap();
}

/// An adapter that puts the weights of another seed into the model.
fn adapter(base: &Path, folder: &Path, registry: &Registry) {
    let other = tempfile::tempdir().unwrap();
    model(other.path(), 99);
    let training = Device::flex().autodiff();
    let load = |path: &Path| {
        source::load(path, None, &mut Init::new(0, &training))
            .unwrap()
            .model
    };
    let config = serde_json::json!({});
    let method = registry.parse("full", &config).unwrap();
    let adapt = |host| peft_core::adapt(host, &*method, None, &mut Init::new(0, &training));
    let model = adapt(load(other.path())).unwrap();
    // Its weights are those of another start; for the description any base of the shape will do.
    assert_eq!(model.host.vocab_size(), load(base).vocab_size());
    let card = crate::adapter::Card {
        kind: "full".into(),
        config: config.clone(),
        seed: Some(0),
        ..Default::default()
    };
    let fitted = crate::adapter::Fitted {
        model,
        method: method.clone(),
        card,
    };
    let format = crate::adapter::Format::Native;
    fitted
        .write(format, &serde_json::Value::Null, "other", folder)
        .unwrap();
}

/// What a conversation of these lines shows, with an adapter `other` at hand, behind the note that
/// the model has no chat template.
fn converse(lines: &str) -> Recorder {
    let mut shown = by_template(None, lines);
    let note = shown.notes.remove(0);
    assert!(note.contains("has no chat template"), "{note}");
    shown
}

fn by_template(template: Option<&str>, lines: &str) -> Recorder {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    model(folder.path(), 1);
    let registry = Registry::builtin();
    adapter(folder.path(), other.path(), &registry);
    let arg = AdapterArg {
        name: "other".into(),
        folder: other.path().into(),
        weight: None,
        drop_layers: None,
    };
    let device = Device::flex();
    let adapters =
        Adapters::load(folder.path(), &StorageSpec::F32, &[arg], &registry, &device).unwrap();
    let base = adapters.get("base").unwrap();
    let tokenizer = source::tokenizer(folder.path(), &base.host).unwrap();
    let chat = Chat {
        base: Adaptable {
            model: folder.path().into(),
            with: Default::default(),
        },
        chosen: None,
        chat_template: None,
        system: None,
        max_new_tokens: 8,
        sampling: Sampling {
            temperature: None,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        },
        compute: Compute {
            device: "cpu".into(),
            threads: None,
        },
    };
    let session = Session {
        chat: &chat,
        adapters: &adapters,
        tokenizer: &tokenizer,
        device: &device,
        format: Format::of(folder.path(), template, &tokenizer, vec![0]).unwrap(),
        conversation: Conversation::new(None),
        using: "base".into(),
    };
    let mut recorder = Recorder::default();
    session
        .run(&mut lines.as_bytes(), "", &mut recorder)
        .unwrap();
    recorder
}

fn answers(lines: &str) -> Vec<String> {
    converse(lines).said.lines().map(String::from).collect()
}

#[test]
fn every_line_gets_an_answer_until_the_input_ends() {
    let one = answers("hello\n");
    assert_eq!(one.len(), 1);
    assert!(!one[0].is_empty());
    let two = answers("hello\n\nhello");
    assert_eq!(two.len(), 2);
    assert_eq!(one[0], two[0]);
}

#[test]
fn an_answer_depends_on_what_was_said_until_that_is_forgotten() {
    let with = answers("hello\nthere\n");
    let fresh = answers("there\n");
    assert_ne!(with[1], fresh[0]);
    assert_eq!(answers("hello\n/reset\nthere\n")[1], fresh[0]);
}

#[test]
fn a_chat_template_is_what_the_model_reads_and_needs_no_note() {
    let plain = answers("hello there\n");
    let shown = by_template(Some("zephyr"), "hello there\n");
    assert_eq!((shown.notes.len(), shown.said.lines().count()), (0, 1));
    assert_ne!(shown.said.lines().collect::<Vec<_>>(), plain);
}

#[test]
fn nothing_is_answered_after_quit() {
    assert_eq!(answers("hello\n/quit\nhello\n").len(), 1);
}

#[test]
fn another_adapter_answers_otherwise_and_the_base_as_before() {
    let base = answers("hello\n");
    let other = answers("/adapter other\nhello\n");
    assert_ne!(base, other);
    assert_eq!(answers("/adapter other\n/adapter base\nhello\n"), base);
}

#[test]
fn what_cannot_be_done_is_said_and_the_conversation_goes_on() {
    let shown = converse("/adapter lost\n/adapters\n/adapter\nhello\n");
    for (note, parts) in shown.notes.iter().zip([
        ["`lost`", "`base`, `other`"],
        ["`/adapters` is no command", "/reset"],
        ["`base`, `other`", "`base` is in use"],
    ]) {
        assert!(parts.iter().all(|part| note.contains(part)), "{note}");
    }
    assert_eq!((shown.notes.len(), shown.said.lines().count()), (3, 1));
}

#[test]
fn a_conversation_that_grows_too_long_forgets_its_oldest_turns_and_says_so() {
    let shown = converse(&"hello there\n".repeat(12));
    assert_eq!(shown.said.lines().count(), 12);
    assert!(
        shown
            .notes
            .iter()
            .any(|note| note.contains("the oldest 2 messages"))
    );
}

#[test]
fn a_message_that_does_not_fit_is_not_answered_and_not_kept() {
    let long = format!("{}\nhello\n", "x ".repeat(200));
    let shown = converse(&long);
    assert!(shown.notes[0].contains("not answered"), "{:?}", shown.notes);
    assert_eq!(shown.said.lines().collect::<Vec<_>>(), answers("hello\n"));
}
