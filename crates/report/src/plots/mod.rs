//! The plots of a report, each drawn once and painted as SVG and as PNG.

mod axis;
mod bars;
mod drawing;
mod font;
mod heat;
mod legend;
mod loss;
mod mark;
mod paint;
mod params;
mod place;
mod point;
mod reference;
mod shade;
mod size;

use drawing::Drawing;

use crate::error::ReportError;
use crate::group::Group;
use crate::summary::Summary;

/// A plot of the report.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// Name of its files without extension.
    pub(crate) name: &'static str,
    /// What it shows, in words, for the page and for readers who cannot see it.
    pub(crate) caption: &'static str,
    pub(crate) svg: String,
    pub(crate) png: Vec<u8>,
}

/// All plots the records allow, and why the others are missing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plots {
    pub(crate) drawn: Vec<Plot>,
    /// Name and reason.
    pub(crate) skipped: Vec<(&'static str, String)>,
}

/// What plots are drawn from.
#[derive(Clone, Copy)]
pub(crate) struct Study<'a> {
    pub(crate) summary: &'a Summary,
    /// One group per row of the summary, in the same order.
    pub(crate) groups: &'a [Group<'a>],
}

/// Draws a plot, or says why there is nothing to draw.
type Draw = fn(Study<'_>) -> Result<Drawing, String>;

const PLOTS: [(&str, &str, Draw); 6] = [
    (
        "score_by_params",
        "Test score against trained parameters: up and to the left is better (down where a lower \
         score is). Methods on the front are beaten by none that is smaller.",
        params::score_by_params,
    ),
    (
        "score_by_size",
        "Test score against rank or bottleneck. The band is one standard deviation over seeds; \
         methods without a size are dashed.",
        size::score_by_size,
    ),
    (
        "memory",
        "Peak memory during training, split into what is known of it. What remains is activations, \
         buffers and the program itself.",
        bars::memory,
    ),
    (
        "throughput",
        "Training throughput: tokens per second of forward, backward and optimizer steps, without \
         evaluation and loading.",
        bars::throughput,
    ),
    (
        "loss",
        "Training loss at the chosen learning rate, a mean over seeds, lightly smoothed.",
        loss::loss,
    ),
    (
        "heat",
        "Mean dev score of every size and learning rate tried. The outlined cell of each row is \
         the learning rate chosen, and the only one whose test score is reported.",
        heat::heat,
    ),
];

/// Draws everything the records allow.
pub(crate) fn draw(study: Study<'_>) -> Result<Plots, ReportError> {
    let mut plots = Plots::default();
    for (name, caption, draw) in PLOTS {
        match draw(study) {
            Err(reason) => plots.skipped.push((name, reason)),
            Ok(drawing) => {
                let painted = paint::paint(&drawing).map_err(|reason| ReportError::Plot {
                    plot: name.to_owned(),
                    reason,
                })?;
                plots.drawn.push(Plot {
                    name,
                    caption,
                    svg: painted.svg,
                    png: painted.png,
                });
            }
        }
    }
    Ok(plots)
}

/// The ends of a metric's range on its own axis.
fn bounds(summary: &Summary) -> (f64, f64) {
    (
        0.0,
        if summary.metric.is_fraction() {
            100.0
        } else {
            f64::INFINITY
        },
    )
}

#[cfg(test)]
mod tests;
