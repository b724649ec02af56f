//! The catalogue: one video for each (topic, level, length), with facts nobody can guess.

use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::topic::{FORMS, LENGTH_WORDS, LEVEL_WORDS, QUALITIES, TOPICS, Topic, pick};

/// Whom a video is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// People new to the topic.
    Beginner,
    /// People past the basics.
    Intermediate,
    /// People who know the topic well.
    Advanced,
}

impl Level {
    /// Every level, easiest first.
    pub const ALL: [Level; 3] = [Level::Beginner, Level::Intermediate, Level::Advanced];

    /// Words for the people of this level.
    pub(super) fn words(self) -> &'static [&'static str; 3] {
        &LEVEL_WORDS[self as usize]
    }
}

/// How long a video runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// A few minutes.
    Short,
    /// An evening.
    Long,
}

impl Length {
    /// Both lengths.
    pub const ALL: [Length; 2] = [Length::Short, Length::Long];

    /// The other one: what `nothing long` asks for.
    #[must_use]
    pub fn other(self) -> Length {
        match self {
            Length::Short => Length::Long,
            Length::Long => Length::Short,
        }
    }

    /// Adjectives of this length.
    pub(super) fn words(self) -> &'static [&'static str; 3] {
        &LENGTH_WORDS[self as usize]
    }
}

/// One video. Its topic, level and length together name it; title, number and quality are facts
/// to be remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Video {
    /// Two words, unique.
    pub title: String,
    /// Three digits, unique.
    pub id: u32,
    /// Its topic, as in `cooking videos`.
    pub topic: String,
    /// Whom it is for.
    pub level: Level,
    /// How long it runs.
    pub length: Length,
    /// What it is praised for.
    pub quality: String,
}

impl Video {
    /// Place of its topic among all topics.
    pub(super) fn topic_index(&self) -> usize {
        let place = TOPICS.iter().position(|topic| topic.name == self.topic);
        place.expect("a video's topic is one of the topics")
    }

    /// The words of its topic.
    pub(super) fn topic(&self) -> &'static Topic {
        &TOPICS[self.topic_index()]
    }
}

/// Builds the videos of the first `topics` topics: by topic, then level, then length.
pub(super) fn build(topics: usize, rng: &mut impl Rng) -> Vec<Video> {
    let mut ids: Vec<u32> = (100..1000).collect();
    ids.shuffle(rng);
    let mut videos = Vec::with_capacity(topics * 6);
    for topic in TOPICS.iter().take(topics) {
        let mut nouns = topic.nouns;
        nouns.shuffle(rng);
        let cells = Level::ALL
            .iter()
            .flat_map(|&level| Length::ALL.map(|length| (level, length)));
        for ((level, length), noun) in cells.zip(nouns) {
            videos.push(Video {
                title: format!("{noun} {}", pick(FORMS, rng)),
                id: ids.pop().expect("more numbers than videos"),
                topic: topic.name.to_string(),
                level,
                length,
                quality: pick(QUALITIES, rng).to_string(),
            });
        }
    }
    videos
}
