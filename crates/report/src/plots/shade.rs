//! Colours for scores, from the worst to the best.

use plotters::style::colors::colormaps::{ColorMap as _, ViridisRGB};

use super::drawing::{Align, BLACK, Drawing, Ink, Rect, SMALL, Text, WHITE};
use crate::stats::median;
use crate::summary::Summary;

/// The dev scores the ends of the colours stand for; what is worse than the first has its colour.
pub(crate) struct Range {
    worst: f64,
    best: f64,
    clipped: bool,
}

impl Range {
    /// From the best score to the worst, unless a few are so far off that the others would all
    /// have one colour.
    pub(crate) fn of(scores: &[f64], summary: &Summary) -> Self {
        let pick = |a: f64, b: f64, better: bool| {
            if summary.metric.better(a, b) == better {
                a
            } else {
                b
            }
        };
        let best = scores
            .iter()
            .copied()
            .reduce(|a, b| pick(a, b, true))
            .unwrap_or(1.0);
        let worst = scores
            .iter()
            .copied()
            .reduce(|a, b| pick(a, b, false))
            .unwrap_or(0.0);
        let middle = median(scores).unwrap_or(best);
        let limit = middle - 3.0 * (best - middle);
        let clipped = limit != best && summary.metric.better(limit, worst);
        Self {
            worst: if clipped { limit } else { worst },
            best,
            clipped,
        }
    }

    /// The colour of a score.
    pub(crate) fn color(&self, score: f64) -> Ink {
        let span = self.best - self.worst;
        let share = if span == 0.0 {
            1.0
        } else {
            (score - self.worst) / span
        };
        let color = ViridisRGB.get_color_normalized(share.clamp(0.0, 1.0), 0.0, 1.0);
        Ink::rgb(color.0, color.1, color.2)
    }

    /// The bar that says which colour stands for which score.
    pub(crate) fn draw(&self, drawing: &mut Drawing, (left, y): (f64, f64), summary: &Summary) {
        let (right, steps) = (left + 240.0, 60);
        for i in 0..steps {
            let share = f64::from(i) / f64::from(steps - 1);
            let x = |i: i32| left + (right - left) * f64::from(i) / f64::from(steps);
            let area = Rect {
                left: x(i),
                top: y,
                right: x(i + 1),
                bottom: y + 10.0,
            };
            drawing.rect(
                area,
                self.color(self.worst + (self.best - self.worst) * share),
            );
        }
        let number = |v: f64| summary.metric.number(v);
        let beyond = if self.clipped { " or worse" } else { "" };
        let worst = format!("{}{beyond}", number(self.worst));
        for (x, text, align) in [
            (left, worst, Align::Left),
            (right, number(self.best), Align::Right),
        ] {
            drawing.push_text(Text::new(text, (x, y + 19.0), align).size(SMALL));
        }
        let title = Text::new(
            summary.metric.axis("Dev"),
            (right + 12.0, y + 5.0),
            Align::Left,
        );
        drawing.push_text(title.size(SMALL));
    }
}

/// Black or white, whichever stands out more (relative luminance of sRGB, roughly).
pub(crate) fn readable_on(ink: Ink) -> Ink {
    let (r, g, b) = ink.rgb;
    let light = 0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b);
    if light > 120.0 { BLACK } else { WHITE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::record;

    #[test]
    fn one_score_far_off_does_not_take_the_colours_of_the_others() {
        let summary = Summary::of(&[record("LoRA r8", 1e-3, 1, 0.5, 0.5)]).unwrap();
        let range = Range::of(&[0.1, 0.90, 0.91, 0.92, 0.93], &summary);
        assert!(
            (range.worst - 0.85).abs() < 1e-9 && range.clipped,
            "{}",
            range.worst
        );
        assert_eq!(range.color(0.1), range.color(0.85));
        assert_ne!(range.color(0.90), range.color(0.93));
        let plain = Range::of(&[0.90, 0.91, 0.92, 0.93], &summary);
        assert_eq!(
            (plain.worst, plain.best, plain.clipped),
            (0.90, 0.93, false)
        );
    }

    #[test]
    fn text_stands_out_on_dark_and_on_light_cells() {
        assert_eq!(readable_on(Ink::rgb(68, 1, 84)), WHITE);
        assert_eq!(readable_on(Ink::rgb(253, 231, 36)), BLACK);
    }
}
