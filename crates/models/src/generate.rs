//! Text generation with a key-value cache: greedy, or sampled with temperature, top-k and top-p.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{Adapted, Memory};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::batch::{Batch, Positions, Side};
use crate::cache::Cache;
use crate::gpt2::head_logits;
use crate::model::Model;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The most likely token.
    Greedy,
    /// Drawn at random.
    Sample {
        /// Divides the logits; above 0.
        temperature: f32,
        /// Only the k most likely tokens; 0 for all.
        top_k: usize,
        /// Only the most likely tokens that together reach this probability; 1 for all.
        top_p: f32,
        /// Seed of the draws.
        seed: u64,
    },
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Most new tokens a text gets.
    pub max_new_tokens: usize,
    /// The tokens that end a text.
    pub eos: Vec<u32>,
    /// How tokens are chosen.
    pub choice: Choice,
    /// The number of the prompts' task, for methods that go by the task; 0 where there is one.
    pub task: usize,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model wrote an ending token.
    Eos,
    /// Whoever watched the tokens had enough.
    Stopped,
    /// It has as many new tokens as were allowed.
    Length,
}

/// The new tokens of a text, without the ending one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub end: End,
}

/// Continues each prompt; returns the new tokens without the ending token.
///
/// # Panics
/// If a prompt is empty, or prompt and new tokens together exceed the model's positions.
pub fn generate(
    adapted: &Adapted<Model>,
    prompts: &[&[u32]],
    generation: &Generation,
    device: &Device,
) -> Vec<Vec<u32>> {
    let watch = &mut |_: usize, _: &[u32]| ControlFlow::Continue(());
    let texts = generate_watched(adapted, prompts, generation, device, watch);
    texts.into_iter().map(|text| text.tokens).collect()
}

/// Continues each prompt. `watch` sees the row of a text and all its new tokens each time it got
/// another, and may end that text there; the others go on.
///
/// # Panics
/// As [`generate`].
pub fn generate_watched(
    adapted: &Adapted<Model>,
    prompts: &[&[u32]],
    generation: &Generation,
    device: &Device,
    watch: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
) -> Vec<Continuation> {
    let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
    let limit = adapted
        .host
        .max_length()
        .saturating_sub(adapted.position_offset);
    assert!(
        prompts.iter().all(|p| !p.is_empty()),
        "a prompt needs at least one token"
    );
    assert!(
        longest + generation.max_new_tokens <= limit,
        "{longest} prompt tokens and {} new ones exceed the model's {limit} positions",
        generation.max_new_tokens
    );
    let mut decoder = Decoder::new(adapted, prompts, generation, device);
    for _ in 0..generation.max_new_tokens {
        if !decoder.step(watch) {
            break;
        }
    }
    let texts = decoder.texts.into_iter().zip(decoder.ends);
    let continuation = |(tokens, end): (_, Option<End>)| Continuation {
        tokens,
        end: end.unwrap_or(End::Length),
    };
    texts.map(continuation).collect()
}

/// A batch of texts being generated.
struct Decoder<'a> {
    adapted: &'a Adapted<Model>,
    generation: &'a Generation,
    device: &'a Device,
    cache: Cache,
    memory: Memory,
    rngs: Vec<ChaCha8Rng>,
    next: Batch,
    /// Mask of all tokens so far, row by row.
    masks: Vec<Vec<f32>>,
    /// Number of real tokens so far, which is the next position.
    lengths: Vec<usize>,
    texts: Vec<Vec<u32>>,
    /// Why each text ended, once it has.
    ends: Vec<Option<End>>,
}

impl<'a> Decoder<'a> {
    fn new(
        adapted: &'a Adapted<Model>,
        prompts: &[&[u32]],
        generation: &'a Generation,
        device: &'a Device,
    ) -> Self {
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
        let mask = |prompt: &&[u32]| {
            let mut mask = vec![0.0; longest - prompt.len()];
            mask.resize(longest, 1.0);
            mask
        };
        let seed = match generation.choice {
            Choice::Greedy => 0,
            Choice::Sample { seed, .. } => seed,
        };
        // One generator a row, so that a text does not depend on its neighbours in the batch.
        let rng = |row: usize| ChaCha8Rng::seed_from_u64(seed.wrapping_add(row as u64));
        let positions = Positions::RealTokens {
            start: 0,
            padding: 0,
        };
        Self {
            adapted,
            generation,
            device,
            cache: Cache::new(),
            memory: Memory::new(),
            rngs: (0..prompts.len()).map(rng).collect(),
            next: Batch::new(prompts, 0, Side::Left, positions, device).of_tasks(&vec![
                generation
                    .task;
                prompts
                    .len()
            ]),
            masks: prompts.iter().map(mask).collect(),
            lengths: prompts.iter().map(|p| p.len()).collect(),
            texts: vec![Vec::new(); prompts.len()],
            ends: vec![None; prompts.len()],
        }
    }

    /// Adds one token to every unfinished text; false when all are finished.
    fn step(&mut self, watch: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>) -> bool {
        let tokens = self.choose();
        for (row, token) in tokens.iter().enumerate() {
            if self.ends[row].is_some() {
                continue;
            }
            if self.generation.eos.contains(token) {
                self.ends[row] = Some(End::Eos);
                continue;
            }
            self.texts[row].push(*token);
            if watch(row, &self.texts[row]).is_break() {
                self.ends[row] = Some(End::Stopped);
            }
        }
        if self.ends.iter().all(Option::is_some) {
            return false;
        }
        self.feed(&tokens);
        true
    }

    /// Runs the model on the newest tokens and chooses the next of every row.
    fn choose(&mut self) -> Vec<u32> {
        let pass = self.adapted.pass().with_memory(Some(self.memory.clone()));
        let hidden = self
            .adapted
            .host
            .hidden(&self.next, Some(&mut self.cache), &pass);
        let [rows, seq, _] = hidden.dims();
        let logits = head_logits(
            hidden.narrow(1, seq - 1, 1),
            self.adapted.host.head_weight(),
        );
        let vocab = logits.dims()[2];
        let logits: Vec<f32> = logits
            .into_data()
            .convert::<f32>()
            .try_to_vec()
            .expect("floats");
        let choice = self.generation.choice;
        (0..rows)
            .map(|row| {
                choose(
                    &logits[row * vocab..(row + 1) * vocab],
                    choice,
                    &mut self.rngs[row],
                )
            })
            .collect()
    }

    fn feed(&mut self, tokens: &[u32]) {
        let rows = tokens.len();
        let column =
            |values: Vec<i64>| Tensor::from_data(TensorData::new(values, [rows, 1]), self.device);
        let ids = column(tokens.iter().map(|t| i64::from(*t)).collect());
        let positions = column(self.lengths.iter().map(|l| *l as i64).collect());
        self.lengths.iter_mut().for_each(|length| *length += 1);
        self.masks.iter_mut().for_each(|mask| mask.push(1.0));
        let padded = self.masks.iter().any(|mask| mask[0] == 0.0);
        let shape = [rows, self.masks[0].len()];
        let mask = padded
            .then(|| Tensor::from_data(TensorData::new(self.masks.concat(), shape), self.device));
        self.next = Batch {
            ids,
            positions,
            mask,
            tasks: self.next.tasks.take(),
            prompt: None,
            texts: None,
            perturbation: None,
        };
    }
}

/// Chooses a token from one row of logits.
fn choose(logits: &[f32], choice: Choice, rng: &mut ChaCha8Rng) -> u32 {
    let Choice::Sample {
        temperature,
        top_k,
        top_p,
        ..
    } = choice
    else {
        return argmax(logits);
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(if top_k == 0 { logits.len() } else { top_k });
    let highest = logits[order[0]];
    let weight = |i: &usize| ((logits[*i] - highest) / temperature.max(1e-6)).exp();
    let weights: Vec<f32> = order.iter().map(weight).collect();
    let total: f32 = weights.iter().sum();
    let mut reached = 0.0;
    let kept = weights.iter().position(|w| {
        reached += w / total;
        reached >= top_p
    });
    let kept = kept.map_or(weights.len(), |last| last + 1);
    let mut draw = rng.random::<f32>() * weights[..kept].iter().sum::<f32>();
    let chosen = weights[..kept].iter().position(|w| {
        draw -= w;
        draw <= 0.0
    });
    order[chosen.unwrap_or(kept - 1)] as u32
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, v)| {
            if *v > best.1 { (i, *v) } else { best }
        });
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(top_k: usize, top_p: f32, draws: usize) -> Vec<u32> {
        let choice = Choice::Sample {
            temperature: 1.0,
            top_k,
            top_p,
            seed: 0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let logits = [0.0, 2.0, 1.0, -1.0];
        (0..draws)
            .map(|_| choose(&logits, choice, &mut rng))
            .collect()
    }

    /// Greedy continuations of two prompts by a small model of random weights.
    fn continued(
        eos: Vec<u32>,
        watch: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Vec<Continuation> {
        let device = Device::flex();
        let config = crate::Gpt2Config::new(64, 16, 32, 2, 2);
        let host = Model::random_gpt2(config, &mut peft_core::Init::new(3, &device)).unwrap();
        let adapted = Adapted::plain(host);
        let generation = Generation {
            task: 0,
            max_new_tokens: 5,
            eos,
            choice: Choice::Greedy,
        };
        generate_watched(&adapted, &[&[1, 2], &[3]], &generation, &device, watch)
    }

    fn tokens(texts: &[Continuation]) -> Vec<Vec<u32>> {
        texts.iter().map(|text| text.tokens.clone()).collect()
    }

    #[test]
    fn a_watcher_sees_every_text_grow_by_a_token_at_a_time() {
        let mut seen = vec![Vec::new(); 2];
        let texts = continued(Vec::new(), &mut |row, tokens| {
            seen[row].push(tokens[tokens.len() - 1]);
            assert_eq!(seen[row], tokens);
            ControlFlow::Continue(())
        });
        assert_eq!(seen, tokens(&texts));
        assert!(
            texts
                .iter()
                .all(|t| t.tokens.len() == 5 && t.end == End::Length)
        );
    }

    #[test]
    fn a_watcher_ends_one_text_and_the_others_go_on() {
        let all = continued(Vec::new(), &mut |_, _| ControlFlow::Continue(()));
        let some = continued(
            Vec::new(),
            &mut |row, tokens| match row == 0 && tokens.len() == 2 {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            },
        );
        assert_eq!(
            (&some[0].tokens[..], some[0].end),
            (&all[0].tokens[..2], End::Stopped)
        );
        assert_eq!(some[1], all[1]);
    }

    #[test]
    fn any_of_several_ending_tokens_ends_a_text_and_is_no_part_of_it() {
        let all = continued(Vec::new(), &mut |_, _| ControlFlow::Continue(()));
        let last = all[0].tokens[4];
        let first = all[0]
            .tokens
            .iter()
            .position(|token| *token == last)
            .unwrap();
        let some = continued(vec![63, last], &mut |_, _| ControlFlow::Continue(()));
        assert_eq!(
            (&some[0].tokens[..], some[0].end),
            (&all[0].tokens[..first], End::Eos)
        );
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(argmax(&[0.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn sampling_follows_the_probabilities() {
        let draws = sample(0, 1.0, 4000);
        let share = draws.iter().filter(|t| **t == 1).count() as f64 / 4000.0;
        let expected = 2f64.exp() / (1.0 + 2f64.exp() + 1f64.exp() + (-1f64).exp());
        assert!(
            (share - expected).abs() < 0.03,
            "{share} against {expected}"
        );
    }

    #[test]
    fn top_k_and_top_p_leave_the_unlikely_out() {
        assert!(sample(2, 1.0, 500).iter().all(|t| *t == 1 || *t == 2));
        assert!(sample(0, 0.5, 500).iter().all(|t| *t == 1));
    }
}
