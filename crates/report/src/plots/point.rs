//! The points of the plot of score against trained parameters.

use super::axis::Frame;
use super::drawing::Rect;
use super::mark::{Mark, families};
use super::reference::Reference;
use crate::format;
use crate::summary::{Row, Summary};

/// Radius of a point.
pub(crate) const RADIUS: f64 = 5.0;

/// A label's place on the plot, in the metric's own unit.
pub(crate) struct Point<'a> {
    pub(crate) row: &'a Row,
    pub(crate) mark: Mark,
    pub(crate) params: f64,
    pub(crate) score: f64,
    pub(crate) sd: f64,
    /// So far from the others that it is drawn at the edge, with an arrow and its score.
    pub(crate) off: bool,
}

/// The labels with a test score: as points, or as levels where nothing was trained.
pub(crate) fn points(summary: &Summary) -> (Vec<Point<'_>>, Vec<Reference<'_>>) {
    let families = families(summary);
    let (mut points, mut references) = (Vec::new(), Vec::new());
    for row in &summary.rows {
        let (Some(params), Some(test)) = (row.trainable, row.test) else {
            continue;
        };
        let family = families.iter().position(|f| *f == row.family).unwrap_or(0);
        let (mark, score) = (Mark::of(family), summary.metric.scaled(test.mean));
        if params == 0 {
            // Nothing trained has no place on a logarithmic axis.
            references.push(Reference {
                label: &row.label,
                level: score,
                ink: mark.ink,
            });
        } else {
            let sd = summary.metric.scaled(test.sd.unwrap_or(0.0));
            points.push(Point {
                row,
                mark,
                params: params as f64,
                score,
                sd,
                off: false,
            });
        }
    }
    mark_off(&mut points);
    (points, references)
}

/// Marks scores beyond three quartile distances, which would squeeze all others together. Few
/// points have no outliers: what is usual is not known yet.
fn mark_off(points: &mut [Point<'_>]) {
    let mut scores: Vec<f64> = points.iter().map(|p| p.score).collect();
    scores.sort_by(f64::total_cmp);
    let n = scores.len();
    if n < 6 {
        return;
    }
    let (first, third) = (scores[n / 4], scores[n - 1 - n / 4]);
    let fence = 3.0 * (third - first);
    for point in points {
        point.off = point.score < first - fence || point.score > third + fence;
    }
}

impl Point<'_> {
    /// Where the point is drawn: at its score, or at the edge nearest to it.
    pub(crate) fn at(&self, frame: &Frame) -> (f64, f64) {
        let Rect { top, bottom, .. } = frame.area;
        let y = frame.y(self.score);
        let y = if self.off {
            y.clamp(top + RADIUS, bottom - RADIUS)
        } else {
            y
        };
        (frame.x(self.params), y)
    }

    /// Lower and upper end of the error bar, within the frame.
    pub(crate) fn bar(&self, frame: &Frame) -> (f64, f64) {
        let Rect { top, bottom, .. } = frame.area;
        let y = |score: f64| frame.y(score).clamp(top, bottom);
        if self.off {
            let (_, y) = self.at(frame);
            return (y, y);
        }
        (y(self.score - self.sd), y(self.score + self.sd))
    }

    /// The label, with the score where the place does not show it.
    pub(crate) fn label(&self, frame: &Frame) -> String {
        let arrow = if frame.y(self.score) > frame.area.bottom {
            "↓"
        } else {
            "↑"
        };
        match self.off {
            true => format!(
                "{} {arrow} {}",
                self.row.label,
                format::significant(self.score)
            ),
            false => self.row.label.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::record;

    fn off(scores: &[f64]) -> Vec<bool> {
        let of = |(score, size): (&f64, usize)| {
            record(&format!("LoRA r{size}"), 1e-3, 1, *score, *score)
        };
        let records: Vec<_> = scores.iter().zip(1..).map(of).collect();
        let summary = Summary::of(&records).unwrap();
        points(&summary).0.iter().map(|p| p.off).collect()
    }

    #[test]
    fn only_a_score_far_from_many_others_is_drawn_at_the_edge() {
        let many = off(&[0.5, 0.9, 0.91, 0.92, 0.93, 0.94]);
        assert_eq!(many, [true, false, false, false, false, false]);
        assert_eq!(off(&[0.5, 0.9, 0.91]), [false; 3]);
        assert_eq!(off(&[0.9; 8]), [false; 8]);
    }
}
