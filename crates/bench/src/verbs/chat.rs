//! `chat`: a conversation on standard input.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Args;
use models::Generation;
use tokenizers::Tokenizer;

use super::generate::{Adaptable, Sampling};
use crate::adapters::Adapters;
use crate::cli::{Compute, print};
use crate::completion::Writer;
use crate::conversation::{Conversation, Format, Role};
use crate::hub::Kind;
use crate::registry::Registry;
use crate::source;

/// What may be typed beside messages.
const HELP: &str = "/adapter NAME uses another adapter, /adapter lists them, /reset forgets the \
                    conversation, /quit ends";

/// Arguments of `chat`.
#[derive(Args)]
pub struct Chat {
    #[command(flatten)]
    base: Adaptable,
    /// Which of the adapters to begin with, `base` for none of them; the first where not given.
    #[arg(long = "use", value_name = "NAME")]
    chosen: Option<String>,
    /// What writes the conversation as text: chatml, gemma, llama2, llama3, zephyr or a file; the
    /// model's own where not given.
    #[arg(long, value_name = "NAME|FILE")]
    chat_template: Option<String>,
    /// What the model is told before the conversation.
    #[arg(long)]
    system: Option<String>,
    /// Most new tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    compute: Compute,
}

impl Chat {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        self.compute.clone().run(|| self.work(registry))
    }

    fn work(&self, registry: &Registry) -> Result<()> {
        ensure!(
            self.max_new_tokens > 0,
            "`--max-new-tokens` is 0, expected at least 1"
        );
        self.sampling.choice(0)?;
        let device = peft_core::device(&self.compute.device)?;
        let model = source::pinned(&self.base.model, false)?;
        let adapters = self.base.with.load(&model, None, registry, &device)?;
        let first = self.chosen.as_deref().or(adapters.names().next());
        let using = adapters.choose(first)?.to_string();
        let host = &adapters.get(&using)?.host;
        ensure!(host.is_causal(), "only language models hold conversations");
        let tokenizer = source::tokenizer(&model, host)?;
        let ending = source::ending_ids(&model, adapters.config(), &tokenizer)?;
        let folder = source::folder(&model, Kind::Model)?;
        let session = Session {
            format: Format::of(&folder, self.chat_template.as_deref(), &tokenizer, ending)?,
            conversation: Conversation::new(self.system.clone()),
            chat: self,
            adapters: &adapters,
            tokenizer: &tokenizer,
            device: &device,
            using,
        };
        let terminal = std::io::stdin().is_terminal();
        let mark = if terminal { "> " } else { "" };
        session.run(&mut std::io::stdin().lock(), mark, &mut Terminal)
    }
}

/// Where a conversation is shown.
trait Screen {
    /// A piece of the conversation.
    fn say(&mut self, text: &str) -> Result<()>;
    /// A line about the conversation.
    fn note(&mut self, line: &str);
}

struct Terminal;

impl Screen for Terminal {
    fn say(&mut self, text: &str) -> Result<()> {
        print(text)
    }
    fn note(&mut self, line: &str) {
        eprintln!("{line}");
    }
}

/// A conversation with a model.
struct Session<'a> {
    chat: &'a Chat,
    adapters: &'a Adapters,
    tokenizer: &'a Tokenizer,
    device: &'a Device,
    format: Format,
    conversation: Conversation,
    /// Name of the adapter in use.
    using: String,
}

impl Session<'_> {
    /// Answers line by line until the input or the user ends; `mark` asks for a line.
    fn run(mut self, input: &mut dyn BufRead, mark: &str, screen: &mut dyn Screen) -> Result<()> {
        if let Some(note) = self.format.note() {
            screen.note(note);
        }
        loop {
            screen.say(mark)?;
            let mut line = String::new();
            let read = input.read_line(&mut line);
            if read.context("cannot read standard input")? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => {}
                "/quit" => return Ok(()),
                command if command.starts_with('/') => self.command(command, screen),
                message => self.answer(message, screen)?,
            }
        }
    }

    fn command(&mut self, command: &str, screen: &mut dyn Screen) {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        match (verb, rest.trim()) {
            ("/reset", "") => {
                self.conversation = Conversation::new(self.chat.system.clone());
                screen.note("the conversation begins anew");
            }
            ("/adapter", "") => {
                let (list, using) = (self.adapters.list(), &self.using);
                screen.note(&format!("there are {list}; `{using}` is in use"));
            }
            ("/adapter", name) => match self.adapters.get(name) {
                Ok(_) => {
                    self.using = name.into();
                    screen.note(&format!("`{name}` answers from now on"));
                }
                Err(error) => screen.note(&crate::error::told(&error)),
            },
            ("/help", "") => screen.note(HELP),
            _ => screen.note(&format!("`{command}` is no command: {HELP}")),
        }
    }

    fn answer(&mut self, message: &str, screen: &mut dyn Screen) -> Result<()> {
        let model = self.adapters.get(&self.using)?;
        let writer = Writer {
            model,
            tokenizer: self.tokenizer,
            device: self.device,
        };
        let limit = model
            .host
            .max_length()
            .saturating_sub(model.position_offset);
        // Half of the positions at most are kept free for a long answer.
        let room = limit - self.chat.max_new_tokens.min(limit / 2);
        let asked = self.conversation.with(Role::User, message);
        let encode = |conversation: &Conversation| {
            let rendered = self.format.render(conversation.messages())?;
            writer.encode_rendered(&rendered.text, rendered.special)
        };
        let Some((asked, ids, dropped)) = asked.fitting(room, &encode)? else {
            screen.note(&format!(
                "this message alone has more than the {room} tokens there is room for; it is not \
                 answered"
            ));
            return Ok(());
        };
        if dropped > 0 {
            screen.note(&format!(
                "the oldest {dropped} messages are forgotten; the model takes {limit} tokens"
            ));
        }
        let turn = asked.messages().len() as u64;
        let generation = Generation {
            task: 0,
            max_new_tokens: self.chat.max_new_tokens.min(limit - ids.len()),
            eos: self.format.ending().to_vec(),
            choice: self.chat.sampling.choice(turn)?,
        };
        let mut begun = false;
        let mut show = |_: usize, piece: &str| {
            // The space after `Assistant:` is the format's and not the answer's.
            let piece = if begun { piece } else { piece.trim_start() };
            begun |= !piece.is_empty();
            screen.say(piece)
        };
        let stop = self.format.stop_texts();
        let answers = writer.complete(&[&ids], &generation, stop, &mut show)?;
        screen.say("\n")?;
        let text = answers.into_iter().next().map(|answer| answer.text);
        let text = text.unwrap_or_default();
        self.conversation = asked.with(Role::Assistant, text.trim_start());
        Ok(())
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
