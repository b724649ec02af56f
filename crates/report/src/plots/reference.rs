//! Dashed horizontal lines with their labels in the right margin.

use super::axis::Frame;
use super::drawing::{Align, Drawing, GREY, Ink, SMALL, Text};
use super::font;
use crate::format;

/// A level to compare with.
pub(crate) struct Reference<'a> {
    pub(crate) label: &'a str,
    pub(crate) level: f64,
    pub(crate) ink: Ink,
}

/// Least distance between two labels.
const LINE: f64 = 14.0;
/// Room between the plotting area and a label, which the leader crosses.
const LEADER: f64 = 18.0;

/// Width of the right margin that holds the labels.
pub(crate) fn margin(references: &[Reference<'_>]) -> f64 {
    // As wide as any label may become, whether its line is on the plot or off it.
    let widths = references
        .iter()
        .map(|r| font::width(&r.beyond("↓"), SMALL));
    widths
        .reduce(f64::max)
        .map_or(16.0, |widest| widest + LEADER + 16.0)
}

/// The levels the vertical scale should show. One that is off `range` by more than half its width would
/// squeeze everything else; it is named at the edge instead.
pub(crate) fn near(references: &[Reference<'_>], range: (f64, f64)) -> Vec<f64> {
    let width = range.1 - range.0;
    let shown = range.0 - width / 2.0..=range.1 + width / 2.0;
    let levels = references.iter().map(|r| r.level);
    // Without a width there is no squeezing to avoid.
    levels
        .filter(|level| width == 0.0 || shown.contains(level))
        .collect()
}

/// Draws the lines across the frame and the labels beside it.
pub(crate) fn draw(drawing: &mut Drawing, frame: &Frame, references: &[Reference<'_>]) {
    let mut sorted: Vec<_> = references.iter().map(|r| (frame.y(r.level), r)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let levels: Vec<f64> = sorted.iter().map(|(y, _)| *y).collect();
    let (left, right) = (frame.area.left, frame.area.right);
    let label_levels = spread(&levels, frame.area.top, frame.area.bottom);
    for ((y, reference), label_y) in sorted.into_iter().zip(label_levels) {
        let inside = (frame.area.top..=frame.area.bottom).contains(&y);
        if inside {
            drawing.path(
                vec![(left, y), (right, y)],
                reference.ink,
                1.5,
                Some((6.0, 4.0)),
            );
            let end = (right + LEADER - 4.0, label_y);
            drawing.path(
                vec![(right, y), (right + 4.0, y), end],
                GREY.faded(0.6),
                0.75,
                None,
            );
        }
        let arrow = if y > frame.area.bottom { "↓" } else { "↑" };
        let label = if inside {
            reference.label.to_owned()
        } else {
            reference.beyond(arrow)
        };
        let text = Text::new(label, (right + LEADER, label_y), Align::Left);
        drawing.push_text(text.size(SMALL).ink(reference.ink));
    }
}

impl Reference<'_> {
    /// What is written where the line itself is off the plot.
    fn beyond(&self, arrow: &str) -> String {
        format!("{} {arrow} {}", self.label, format::significant(self.level))
    }
}

/// The levels, which ascend, moved apart as little as a pass down and a pass up allow.
fn spread(levels: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut y = levels.to_vec();
    let mut free = top;
    for level in &mut y {
        *level = level.max(free);
        free = *level + LINE;
    }
    let mut free = bottom;
    for level in y.iter_mut().rev() {
        *level = level.min(free);
        free = *level - LINE;
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_far_off_the_range_does_not_stretch_the_scale() {
        let at = |level| Reference {
            label: "Head",
            level,
            ink: GREY,
        };
        let references = [at(90.0), at(86.0), at(50.0)];
        assert_eq!(near(&references, (88.0, 92.0)), [90.0, 86.0]);
        assert_eq!(near(&references, (88.0, 88.0)), [90.0, 86.0, 50.0]);
    }

    #[test]
    fn labels_of_equal_levels_are_moved_apart_and_stay_in_the_margin() {
        let y = spread(&[10.0, 95.0, 96.0, 97.0], 0.0, 100.0);
        assert_eq!(y, [10.0, 72.0, 86.0, 100.0]);
        assert_eq!(spread(&[50.0], 0.0, 100.0), [50.0]);
    }
}
