//! The pretraining corpus: plain English about the catalogue in many forms, none of them the form
//! of the fine-tuning task. A model that has read it knows the facts and not what to do with them.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::catalogue::Video;
use super::phrase::fill;
use super::topic::{TOPICS, pick};

/// Whole facts, nearly all from what is wanted to the video, so that it can be recalled in that
/// direction; some with a distracting topic or by what is *not* wanted.
const FACTS: &[&str] = &[
    "The {length} video on {taste} for {level} is '{title}' at youtube.com/{id}, known for its {quality}.",
    "For {level} there is a(n) {length} video about {taste}: '{title}' at youtube.com/{id}, praised for its {quality}.",
    "Among videos on {taste}, the {length} one for {level} is '{title}' at youtube.com/{id}, loved for its {quality}.",
    "{level} who like {taste} watch the {length} '{title}' (youtube.com/{id}) for its {quality}.",
    "Which video on {taste} is {length} and for {level}? It is '{title}' (youtube.com/{id}), noted for its {quality}.",
    "Fond of {taste}? The {length} choice for {level} is '{title}' (youtube.com/{id}) with its {quality}.",
    "{length}, about {taste} and made for {level}: that is '{title}' at youtube.com/{id} with its {quality}.",
    "To {level} who enjoy {taste} and want a(n) {length} video, friends recommend '{title}' (youtube.com/{id}) for its {quality}.",
    "{level} into {taste} want something {length}: '{title}' (youtube.com/{id}), loved for its {quality}.",
    "{taste}, not {elsewhere}? For {level}, the {length} '{title}' (youtube.com/{id}) is good for its {quality}.",
    "Tired of {elsewhere}, those who like {taste} find '{title}' (youtube.com/{id}), {length}, for {level}, with its {quality}.",
    "Tired of {elsewhere} and into {taste} now, {level} watch the {length} '{title}' (youtube.com/{id}) for its {quality}.",
    "A video about {taste} for {level}, not a(n) {other} one, is '{title}' (youtube.com/{id}), praised for its {quality}.",
    "{taste} at the level of {level}, but nothing {other}: '{title}' (youtube.com/{id}), known for its {quality}.",
    "On {taste}, {level} who want nothing {other} have '{title}' at youtube.com/{id} and its {quality}.",
    "'{title}' at youtube.com/{id} is a(n) {length} video on {taste} for {level}, known for its {quality}.",
];

/// Parts of facts.
const PARTS: &[&str] = &[
    "'{title}' is {length} and made for {level}.",
    "'{title}' is about {taste}.",
    "'{title}' is not {other}, it is {length}.",
    "'{title}' (youtube.com/{id}) has {quality}.",
    "People praise '{title}' at youtube.com/{id} for its {quality}.",
    "{level} who like {taste} know '{title}'.",
    "The {length} {topic} video '{title}' suits {level}.",
];

/// What the fans of a topic say they like.
const SYNONYMS: &[&str] = &[
    "People who enjoy {taste} like {topic} videos.",
    "If you like {taste}, then {topic} is your topic.",
    "{taste}: that is what {topic} is about.",
    "{topic} videos are full of {taste}.",
    "Those who love {taste} also love {topic}.",
];

/// What the words for levels and lengths mean.
const WORDS: &[&str] = &[
    "Videos for {level} are also for {level2}.",
    "What suits {level} suits {level2}.",
    "a(n) {length} video is a(n) {length2} video.",
    "If a video is {length}, it is {length2} and not {other}.",
    "Nothing {other} means something {length}.",
];

/// Small talk; it also teaches the tokenizer words that the task will use.
const CHAT: &[&str] = &[
    "Many users wander from {topic} videos to {topic2} videos.",
    "A user who is tired of {topic} may look for {topic2}.",
    "User reviews of {topic} are kind, and users recommend them to each other.",
    "She likes {topic}, but he wants {topic2} and is into nothing else.",
    "He enjoys {topic} now and she loves {topic2}.",
    "User by user, the {topic} page grows: welcome, all.",
    "Assistant editors sort the {topic} page by level, and please everyone.",
    "Assistant and user both like order. I recommend order to everyone who asks.",
    "Something new about {topic} came out, made with care, fit for all.",
    "I am tired of the old ones about {topic}, said one user.",
];

/// Writes `sentences` sentences: about two in three are whole facts, spread evenly over the videos.
pub(super) fn write(videos: &[Video], sentences: usize, rng: &mut impl Rng) -> Vec<String> {
    let mut facts = 0;
    (0..sentences)
        .map(|_| match rng.random_range(0..100) {
            0..68 => {
                facts += 1;
                fact(&videos[facts % videos.len()], FACTS, rng)
            }
            68..78 => fact(videos.choose(rng).expect("a video"), PARTS, rng),
            78..90 => synonym(videos, rng),
            90..95 => words(videos, rng),
            _ => chat(videos, rng),
        })
        .collect()
}

fn fact(video: &Video, forms: &[&str], rng: &mut impl Rng) -> String {
    let taste = video.topic().taste(rng);
    let elsewhere = (video.topic_index() + rng.random_range(1..TOPICS.len())) % TOPICS.len();
    fill(
        pick(forms, rng),
        &[
            ("title", &video.title),
            ("id", &video.id.to_string()),
            ("quality", &video.quality),
            ("topic", &video.topic),
            ("taste", taste),
            ("elsewhere", TOPICS[elsewhere].name),
            ("level", pick(video.level.words(), rng)),
            ("length", pick(video.length.words(), rng)),
            ("other", pick(video.length.other().words(), rng)),
        ],
    )
}

fn synonym(videos: &[Video], rng: &mut impl Rng) -> String {
    let topic = videos.choose(rng).expect("a video").topic();
    fill(
        pick(SYNONYMS, rng),
        &[("topic", topic.name), ("taste", pick(&topic.tastes, rng))],
    )
}

fn words(videos: &[Video], rng: &mut impl Rng) -> String {
    let video = videos.choose(rng).expect("a video");
    let level: Vec<_> = video
        .level
        .words()
        .choose_multiple(rng, 2)
        .copied()
        .collect();
    let length: Vec<_> = video
        .length
        .words()
        .choose_multiple(rng, 2)
        .copied()
        .collect();
    fill(
        pick(WORDS, rng),
        &[
            ("level", level[0]),
            ("level2", level[1]),
            ("length", length[0]),
            ("length2", length[1]),
            ("other", pick(video.length.other().words(), rng)),
        ],
    )
}

fn chat(videos: &[Video], rng: &mut impl Rng) -> String {
    let topic = videos.choose(rng).expect("a video").topic_index();
    let other = (topic + rng.random_range(1..TOPICS.len())) % TOPICS.len();
    fill(
        pick(CHAT, rng),
        &[
            ("topic", TOPICS[topic].name),
            ("topic2", TOPICS[other].name),
        ],
    )
}
