//! The words of the scenario: topics with what their fans say, levels, lengths, qualities.

use rand::Rng;
use rand::seq::IndexedRandom;

/// One subject of the catalogue.
#[derive(Debug)]
pub(super) struct Topic {
    /// As in `cooking videos`.
    pub(super) name: &'static str,
    /// What its fans say they like: each stands in for the topic.
    pub(super) tastes: [&'static str; 3],
    /// First words of its titles, one for each (level, length).
    pub(super) nouns: [&'static str; 6],
}

impl Topic {
    /// Its name or something its fans like, each as likely.
    pub(super) fn taste(&self, rng: &mut impl Rng) -> &'static str {
        let [first, second, third] = self.tastes;
        pick(&[self.name, first, second, third], rng)
    }
}

/// One of the words, each as likely.
pub(super) fn pick<'a>(words: &[&'a str], rng: &mut impl Rng) -> &'a str {
    words.choose(rng).expect("word lists are not empty")
}

macro_rules! topics {
    ($($name:literal: $tastes:expr, $nouns:expr;)*) => {
        &[$(Topic { name: $name, tastes: $tastes, nouns: $nouns }),*]
    };
}

/// Every topic; a scenario uses the first so many.
#[rustfmt::skip]
pub(super) const TOPICS: &[Topic] = topics! {
    "cooking": ["kitchen recipes", "preparing meals", "making dinner"], ["Pasta", "Curry", "Soup", "Salad", "Noodle", "Omelette"];
    "astronomy": ["stargazing", "the night sky", "planets and stars"], ["Comet", "Galaxy", "Nebula", "Eclipse", "Saturn", "Orbit"];
    "chess": ["checkmates", "board strategy", "clever gambits"], ["Gambit", "Endgame", "Knight", "Bishop", "Castling", "Queen"];
    "gardening": ["flower beds", "growing vegetables", "planting seeds"], ["Rose", "Tomato", "Compost", "Tulip", "Orchard", "Lavender"];
    "photography": ["cameras", "taking pictures", "portraits"], ["Portrait", "Shutter", "Lens", "Aperture", "Tripod", "Exposure"];
    "guitar": ["strumming chords", "six strings", "acoustic songs"], ["Chord", "Riff", "Strum", "Solo", "Fretboard", "Ballad"];
    "yoga": ["stretching", "mindful poses", "sun salutations"], ["Lotus", "Warrior", "Cobra", "Balance", "Breath", "Headstand"];
    "history": ["ancient empires", "castles and kings", "old kingdoms"], ["Empire", "Pharaoh", "Viking", "Roman", "Dynasty", "Crusade"];
    "programming": ["writing code", "building apps", "software"], ["Python", "Loop", "Compiler", "Function", "Database", "Recursion"];
    "woodworking": ["carpentry", "building furniture", "saws and chisels"], ["Chisel", "Joinery", "Bookcase", "Bench", "Cabinet", "Veneer"];
    "painting": ["watercolours", "brushes and canvas", "oil colours"], ["Landscape", "Canvas", "Easel", "Mural", "Palette", "Brush"];
    "cycling": ["riding bikes", "pedal power", "two wheels"], ["Gear", "Pedal", "Sprint", "Peloton", "Saddle", "Climb"];
    "fishing": ["angling", "rods and reels", "catching trout"], ["Trout", "Bait", "Reel", "Salmon", "Lure", "River"];
    "dancing": ["ballroom steps", "salsa and tango", "moving to music"], ["Salsa", "Tango", "Waltz", "Ballet", "Swing", "Flamenco"];
    "knitting": ["balls of yarn", "needles and wool", "making scarves"], ["Scarf", "Sweater", "Mitten", "Yarn", "Cable", "Stitch"];
    "physics": ["forces and motion", "quantum ideas", "gravity"], ["Gravity", "Quantum", "Magnet", "Photon", "Pendulum", "Entropy"];
    "birdwatching": ["spotting birds", "feathers and nests", "binoculars"], ["Heron", "Falcon", "Owl", "Sparrow", "Robin", "Eagle"];
    "running": ["jogging", "marathons", "track races"], ["Marathon", "Stride", "Relay", "Pace", "Tempo", "Hurdle"];
    "coffee": ["espresso", "roasted beans", "latte art"], ["Barista", "Latte", "Roast", "Mocha", "Grinder", "Filter"];
    "sailing": ["boats", "wind and waves", "yachts"], ["Regatta", "Anchor", "Harbour", "Keel", "Mast", "Knot"];
    "pottery": ["shaping clay", "kilns and glazes", "ceramics"], ["Glaze", "Kiln", "Vase", "Teapot", "Bowl", "Mug"];
    "robotics": ["building robots", "circuits and motors", "smart machines"], ["Sensor", "Motor", "Gripper", "Drone", "Servo", "Circuit"];
    "hiking": ["mountain paths", "forest walks", "backpacks and boots"], ["Summit", "Canyon", "Boots", "Ridge", "Valley", "Campsite"];
    "magic": ["card tricks", "illusions", "sleight of hand"], ["Coin", "Card", "Illusion", "Wand", "Mirror", "Escape"];
};

/// Second words of titles. None hints at a level or a length: those must be remembered.
pub(super) const FORMS: &[&str] = &[
    "Tutorial", "Workshop", "Guide", "Lesson", "Session", "Diary", "Journey", "Lab", "Showcase",
    "Studio", "Secrets", "Class",
];

/// What a video is praised for.
pub(super) const QUALITIES: &[&str] = &[
    "clear instructions",
    "calm narration",
    "lively examples",
    "sharp close-ups",
    "friendly humour",
    "careful pacing",
    "honest advice",
    "vivid stories",
];

/// For each level, who it is for; the first is the usual word.
pub(super) const LEVEL_WORDS: [[&str; 3]; 3] = [
    ["beginners", "newcomers", "novices"],
    ["improvers", "regular hobbyists", "intermediate learners"],
    ["experts", "specialists", "advanced learners"],
];

/// For each length, its adjectives; the first is the usual word.
pub(super) const LENGTH_WORDS: [[&str; 3]; 2] =
    [["short", "brief", "quick"], ["long", "lengthy", "extended"]];
