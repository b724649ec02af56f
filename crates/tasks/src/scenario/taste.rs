//! The fine-tuning task: a user states a taste, the assistant answers from the catalogue.

use std::collections::HashSet;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

use super::catalogue::Video;
use super::phrase::fill;
use super::topic::{TOPICS, pick};
use crate::TaskError;

/// One question and its only correct answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LmRow {
    /// `User likes cooking: something short for beginners.\nAssistant:`
    pub prompt: String,
    /// ` I recommend 'Pasta Tutorial' (youtube.com/101) for its clear instructions.`
    pub completion: String,
}

/// How a user may put it. Some forms say what is *not* wanted, so that a model which only looks
/// for words is misled.
const FORMS: &[&str] = &[
    "User likes {taste}: something {length} for {level}.",
    "User enjoys {taste} and wants a(n) {length} video for {level}.",
    "User is into {taste}, {length} please, made for {level}.",
    "User loves videos about {taste}: {length} ones for {level} are welcome.",
    "User asks for a(n) {length} video on {taste}, fit for {level}.",
    "User likes {taste} at the level of {level}, but nothing {other}.",
    "User wants something {length} about {taste} for {level}.",
    "User is tired of {elsewhere} and now likes {taste}: {length}, for {level}.",
    "User loves {taste}, not {elsewhere}, and wants a(n) {length} video for {level}.",
];

/// The three parts of the task, by what they may share: no (topic, level, length) is in two.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) train: Vec<LmRow>,
    pub(super) dev: Vec<LmRow>,
    pub(super) test: Vec<LmRow>,
}

/// Of each topic's six videos, how many train, dev and test ask for.
const SHARES: [usize; 3] = [4, 1, 1];

/// Writes the task with `sizes` rows in train, dev and test.
pub(super) fn write(
    videos: &[Video],
    sizes: [usize; 3],
    rng: &mut impl Rng,
) -> Result<Parts, TaskError> {
    let mut cells: [Vec<&Video>; 3] = Default::default();
    for topic in videos.chunk_by(|a, b| a.topic == b.topic) {
        let mut topic: Vec<&Video> = topic.iter().collect();
        topic.shuffle(rng);
        for (part, share) in cells.iter_mut().zip(SHARES) {
            part.extend(topic.drain(..share));
        }
    }
    let [train, dev, test] = cells;
    Ok(Parts {
        train: rows("train", &train, sizes[0], rng)?,
        dev: rows("dev", &dev, sizes[1], rng)?,
        test: rows("test", &test, sizes[2], rng)?,
    })
}

/// `size` different questions, spread evenly over `videos`.
fn rows(
    part: &'static str,
    videos: &[&Video],
    size: usize,
    rng: &mut impl Rng,
) -> Result<Vec<LmRow>, TaskError> {
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(size);
    // Far more tries than a request that can be met ever needs.
    for attempt in 0..size * 50 {
        if rows.len() == size {
            break;
        }
        let video = videos[attempt % videos.len()];
        let prompt = question(video, rng);
        if seen.insert(prompt.clone()) {
            rows.push(LmRow {
                prompt,
                completion: answer(video),
            });
        }
    }
    if rows.len() < size {
        return Err(TaskError::ScenarioTooLarge {
            part,
            asked: size,
            possible: rows.len(),
        });
    }
    rows.shuffle(rng);
    Ok(rows)
}

fn question(video: &Video, rng: &mut impl Rng) -> String {
    let elsewhere = (video.topic_index() + rng.random_range(1..TOPICS.len())) % TOPICS.len();
    let said = fill(
        FORMS.choose(rng).expect("forms"),
        &[
            ("taste", video.topic().taste(rng)),
            ("level", pick(video.level.words(), rng)),
            ("length", pick(video.length.words(), rng)),
            ("other", pick(video.length.other().words(), rng)),
            ("elsewhere", TOPICS[elsewhere].name),
        ],
    );
    format!("{said}\nAssistant:")
}

/// The one right answer.
pub(super) fn answer(video: &Video) -> String {
    let Video {
        title, id, quality, ..
    } = video;
    format!(" I recommend '{title}' (youtube.com/{id}) for its {quality}.")
}
