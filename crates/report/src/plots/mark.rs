//! How a method looks: a colour that colour-blind readers can tell, and a shape beside it.
//!
//! Paper: colours after Okabe & Ito 2008 without their yellow, with two of Tol 2021 and three more.

use super::drawing::{Drawing, Ink};
use crate::summary::Summary;

/// Colour, shape and dash of one series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mark {
    pub(crate) ink: Ink,
    shape: usize,
}

const COLORS: [Ink; 12] = [
    Ink::rgb(0x00, 0x72, 0xb2),
    Ink::rgb(0xd5, 0x5e, 0x00),
    Ink::rgb(0x00, 0x9e, 0x73),
    Ink::rgb(0xcc, 0x79, 0xa7),
    Ink::rgb(0xe6, 0x9f, 0x00),
    Ink::rgb(0x56, 0xb4, 0xe9),
    Ink::rgb(0x33, 0x33, 0x33),
    Ink::rgb(0x88, 0x22, 0x55),
    Ink::rgb(0x99, 0x99, 0x33),
    Ink::rgb(0x6a, 0x3d, 0xc8),
    Ink::rgb(0x8c, 0x5a, 0x2b),
    Ink::rgb(0x7a, 0xc9, 0x43),
];

/// Corners of the shapes on the unit circle, by angle in degrees; the first is a circle.
const SHAPES: [&[f64]; 7] = [
    &[],
    &[45.0, 135.0, 225.0, 315.0],
    &[90.0, 210.0, 330.0],
    &[0.0, 90.0, 180.0, 270.0],
    &[30.0, 150.0, 270.0],
    &[90.0, 162.0, 234.0, 306.0, 18.0],
    &[0.0, 60.0, 120.0, 180.0, 240.0, 300.0],
];

impl Mark {
    /// The mark of the `index`th series; 84 differ, as twelve colours and seven shapes have no
    /// common factor.
    pub(crate) fn of(index: usize) -> Self {
        Self {
            ink: COLORS[index % COLORS.len()],
            shape: index % SHAPES.len(),
        }
    }

    /// The same shape in a paler colour; see [`Ink::tinted`].
    pub(crate) fn tinted(self, white: f64) -> Self {
        Self {
            ink: self.ink.tinted(white),
            ..self
        }
    }

    pub(crate) fn draw(&self, drawing: &mut Drawing, at: (f64, f64), radius: f64) {
        let corners = SHAPES[self.shape];
        if corners.is_empty() {
            return drawing.circle(at, radius, self.ink);
        }
        // Shapes with fewer corners are drawn larger, so that all cover about the same area.
        let radius = radius * (1.0 + 1.2 / corners.len() as f64);
        let corner = |degrees: &f64| {
            let angle = degrees.to_radians();
            (at.0 + radius * angle.cos(), at.1 - radius * angle.sin())
        };
        drawing.polygon(corners.iter().map(corner).collect(), self.ink);
    }
}

/// The families of a summary in order of first appearance, which gives each its mark.
pub(crate) fn families(summary: &Summary) -> Vec<&str> {
    let mut families: Vec<&str> = Vec::new();
    for row in &summary.rows {
        if !families.contains(&row.family.as_str()) {
            families.push(&row.family);
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_84_marks_differ() {
        let marks: Vec<_> = (0..84).map(Mark::of).collect();
        for (i, mark) in marks.iter().enumerate() {
            assert!(!marks[..i].contains(mark), "mark {i} was seen before");
        }
    }
}
