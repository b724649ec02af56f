//! Title and legend above a plot, outside its area.

use super::drawing::{Align, Drawing, GREY, Ink, Rect, SMALL, Text};
use super::font;
use super::mark::Mark;

/// What stands before a label in the legend.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key {
    /// A point.
    Point(Mark),
    /// A line with points, in dashes where it is drawn so.
    Line(Mark, Option<(f64, f64)>),
    /// A dashed line.
    Dashed(Ink),
    /// A filled area.
    Swatch(Ink),
    /// A short upright stroke.
    Tick(Ink),
}

/// An entry of the legend.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) label: String,
}

/// Title, subtitle and legend of a plot.
pub(crate) struct Header<'a> {
    pub(crate) title: &'a str,
    pub(crate) subtitle: &'a str,
    pub(crate) legend: Vec<Entry>,
}

const MARGIN: f64 = 16.0;
const KEY_WIDTH: f64 = 24.0;
const GAP: f64 = 18.0;
const LINE: f64 = 19.0;

impl Header<'_> {
    /// Height the header takes on a drawing of this width, with room below it.
    pub(crate) fn height(&self, width: f64) -> f64 {
        62.0 + self.positions(width).last().map_or(0.0, |(_, y)| y + LINE)
    }

    /// Draws the header at the top.
    pub(crate) fn draw(&self, drawing: &mut Drawing) {
        let title = Text::new(self.title, (MARGIN, 22.0), Align::Left)
            .size(15.0)
            .bold();
        drawing.push_text(title);
        let subtitle = Text::new(self.subtitle, (MARGIN, 42.0), Align::Left);
        drawing.push_text(subtitle.size(SMALL).ink(GREY));
        for (entry, (x, y)) in self.legend.iter().zip(self.positions(drawing.width)) {
            let middle = y + 64.0;
            entry.key.draw(drawing, x, middle);
            drawing.text(&entry.label, (x + KEY_WIDTH + 6.0, middle), Align::Left);
        }
    }

    /// Left end and offset of each entry, in columns of one width.
    fn positions(&self, width: f64) -> Vec<(f64, f64)> {
        let widths = self
            .legend
            .iter()
            .map(|e| font::width(&e.label, super::drawing::TEXT));
        let widest = widths.fold(0.0, f64::max);
        let column = KEY_WIDTH + 6.0 + widest + GAP;
        let columns = ((width - 2.0 * MARGIN + GAP) / column).floor().max(1.0) as usize;
        (0..self.legend.len())
            .map(|i| {
                (
                    MARGIN + (i % columns) as f64 * column,
                    (i / columns) as f64 * LINE,
                )
            })
            .collect()
    }
}

impl Key {
    fn draw(self, drawing: &mut Drawing, x: f64, y: f64) {
        let (end, middle) = (x + KEY_WIDTH, x + KEY_WIDTH / 2.0);
        match self {
            Self::Point(mark) => mark.draw(drawing, (middle, y), 4.5),
            Self::Line(mark, dash) => {
                drawing.path(vec![(x, y), (end, y)], mark.ink, 2.0, dash);
                mark.draw(drawing, (middle, y), 4.0);
            }
            Self::Dashed(ink) => {
                drawing.path(vec![(x, y), (end, y)], ink, 1.5, Some((5.0, 3.0)));
            }
            Self::Swatch(ink) => {
                drawing.rect(Rect::around((middle, y), KEY_WIDTH - 6.0, 11.0), ink);
            }
            Self::Tick(ink) => drawing.line((middle, y - 6.0), (middle, y + 6.0), ink, 2.0),
        }
    }
}
