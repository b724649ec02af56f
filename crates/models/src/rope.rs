//! Rotary positions: how fast each pair of features turns, in the variants that stretch a model to
//! longer texts than it was trained on.

use serde_json::Value;

use crate::error::ModelError;
use crate::fields::Fields;

/// Rotary positions of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched to longer texts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows with the text, once it is longer than the model's length.
    Dynamic {
        /// How much longer texts may be.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths longer than the original length over this are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original length over this are kept.
        high_freq_factor: f64,
        /// Length of the texts of pretraining.
        original: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): the same idea by number of turns, with warmer
    /// attention.
    Yarn(Yarn),
}

/// Parameters of YaRN.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Divides low frequencies.
    pub factor: f64,
    /// Factor on cosines and sines.
    pub attention_factor: f64,
    /// Frequencies that turn more often than this over the original length are kept.
    pub beta_fast: f64,
    /// Frequencies that turn less often than this are divided.
    pub beta_slow: f64,
    /// Whether the ends of the ramp are rounded to whole features.
    pub truncate: bool,
    /// Length of the texts of pretraining.
    pub original: usize,
}

const KINDS: &str = "default, linear, dynamic, llama3 or yarn";

/// Keys that may stand beside the rotary type. Others would change what a newer library computes.
const KNOWN: [&str; 14] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
    "partial_rotary_factor",
];

impl Rope {
    /// Positions without stretching.
    pub fn new(theta: f64) -> Self {
        Self {
            theta,
            scaling: RopeScaling::Default,
        }
    }

    /// Reads `rope_theta` and `rope_scaling`, or the `rope_parameters` of newer files.
    pub(crate) fn read(fields: &Fields<'_>, max_positions: usize) -> Result<Self, ModelError> {
        fields.only("partial_rotary_factor", &Value::from(1.0))?;
        let theta = fields.above("rope_theta", 1.0)?.unwrap_or(1e4);
        let (new, old) = (
            fields.object("rope_parameters")?,
            fields.object("rope_scaling")?,
        );
        if new.is_some() && old.is_some() {
            return Err(fields.error("rope_scaling", "absent beside `rope_parameters`"));
        }
        let Some(section) = new.or(old) else {
            return Ok(Self::new(theta));
        };
        section.only("partial_rotary_factor", &Value::from(1.0))?;
        if let Some(key) = section.keys().find(|key| !KNOWN.contains(key)) {
            return Err(section.error(key, "no key that is not supported"));
        }
        Ok(Self {
            theta: section.above("rope_theta", 1.0)?.unwrap_or(theta),
            scaling: RopeScaling::read(&section, max_positions)?,
        })
    }

    /// Longest text, given the length the configuration names.
    pub(crate) fn longest(&self, max_positions: usize) -> usize {
        let stretched = match &self.scaling {
            RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 0.0,
            RopeScaling::Dynamic { factor } => max_positions as f64 * factor,
            RopeScaling::Yarn(yarn) => yarn.original as f64 * yarn.factor,
        };
        // Saturates: no text is that long.
        max_positions.max(stretched as usize)
    }
}

impl RopeScaling {
    fn read(section: &Fields<'_>, max_positions: usize) -> Result<Self, ModelError> {
        let kind = kind(section)?;
        let required = |key, bound| {
            let expected = format!("a finite number above {bound}");
            section
                .above(key, bound)?
                .ok_or_else(|| section.error(key, &expected))
        };
        let factor = || {
            let factor = required("factor", 0.0)?;
            let expected = "a finite number from 1 up";
            (factor >= 1.0)
                .then_some(factor)
                .ok_or_else(|| section.error("factor", expected))
        };
        match kind {
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "dynamic" => Ok(Self::Dynamic { factor: factor()? }),
            "llama3" => {
                let (low_freq_factor, high_freq_factor) = (
                    required("low_freq_factor", 0.0)?,
                    required("high_freq_factor", 0.0)?,
                );
                if high_freq_factor <= low_freq_factor {
                    return Err(section.error("high_freq_factor", "more than `low_freq_factor`"));
                }
                Ok(Self::Llama3 {
                    factor: factor()?,
                    low_freq_factor,
                    high_freq_factor,
                    original: section.count("original_max_position_embeddings")?,
                })
            }
            "yarn" => Ok(Self::Yarn(Yarn::read(section, factor()?, max_positions)?)),
            _ => Err(section.error(kind_key(section), KINDS)),
        }
    }
}

/// The older name of the key wins where both are there, as in `transformers`.
fn kind_key(section: &Fields<'_>) -> &'static str {
    if section.value("type").is_null() {
        "rope_type"
    } else {
        "type"
    }
}

fn kind<'a>(section: &Fields<'a>) -> Result<&'a str, ModelError> {
    let key = kind_key(section);
    match section.value(key) {
        Value::String(kind) => Ok(kind),
        _ => Err(section.error(key, KINDS)),
    }
}

impl Yarn {
    fn read(section: &Fields<'_>, factor: f64, max_positions: usize) -> Result<Self, ModelError> {
        let (beta_fast, beta_slow) = (
            section.above("beta_fast", 0.0)?.unwrap_or(32.0),
            section.above("beta_slow", 0.0)?.unwrap_or(1.0),
        );
        if beta_fast <= beta_slow {
            return Err(section.error("beta_fast", "more than `beta_slow`"));
        }
        let (mscale, all) = (
            section.above("mscale", 0.0)?,
            section.above("mscale_all_dim", 0.0)?,
        );
        let warmth = |mscale: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * mscale * factor.ln() + 1.0
            }
        };
        let inferred = match (mscale, all) {
            (Some(mscale), Some(all)) => warmth(mscale) / warmth(all),
            _ => warmth(1.0),
        };
        let original = section.optional_count("original_max_position_embeddings")?;
        Ok(Self {
            factor,
            attention_factor: section.above("attention_factor", 0.0)?.unwrap_or(inferred),
            beta_fast,
            beta_slow,
            truncate: section.flag("truncate", true)?,
            original: original.unwrap_or(max_positions),
        })
    }

    /// How much of frequency `i` is divided, from 0 (none) to 1.
    pub(crate) fn divided(&self, i: usize, head_dim: usize, theta: f64) -> f64 {
        let dim = head_dim as f64;
        // The feature that turns this often over the original length.
        let feature = |turns: f64| {
            let ratio = self.original as f64 / (turns * std::f64::consts::TAU);
            dim * ratio.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (feature(self.beta_fast), feature(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}
