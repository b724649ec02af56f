//! A drawing as a list of shapes in logical pixels, so that what a plot is can be told from how it
//! is painted, and tests can look at it.

/// A colour with its opacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ink {
    pub(crate) rgb: (u8, u8, u8),
    pub(crate) alpha: f64,
}

impl Ink {
    pub(crate) const fn rgb(r: u8, g: u8, b: u8) -> Self {
        Self {
            rgb: (r, g, b),
            alpha: 1.0,
        }
    }

    /// The colour with so much white in it, from 0 to 1.
    pub(crate) fn tinted(self, white: f64) -> Self {
        let mixed = |c: u8| (f64::from(c) + white * (255.0 - f64::from(c))).round() as u8;
        let (r, g, b) = self.rgb;
        Self {
            rgb: (mixed(r), mixed(g), mixed(b)),
            alpha: self.alpha,
        }
    }

    pub(crate) const fn faded(self, alpha: f64) -> Self {
        Self {
            rgb: self.rgb,
            alpha,
        }
    }
}

/// Where a text lies relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Center,
    Right,
}

/// A line of text; `at` is the middle of its height.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) at: (f64, f64),
    pub(crate) align: Align,
    pub(crate) size: f64,
    pub(crate) ink: Ink,
    pub(crate) bold: bool,
    /// Turned to read from bottom to top.
    pub(crate) upright: bool,
}

/// One thing to paint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Path {
        points: Vec<(f64, f64)>,
        ink: Ink,
        width: f64,
        dash: Option<(f64, f64)>,
    },
    Polygon {
        points: Vec<(f64, f64)>,
        ink: Ink,
    },
    Rect {
        area: Rect,
        ink: Ink,
    },
    Circle {
        center: (f64, f64),
        radius: f64,
        ink: Ink,
    },
    Text(Text),
}

/// An upright rectangle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rect {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) right: f64,
    pub(crate) bottom: f64,
}

impl Rect {
    pub(crate) fn around(center: (f64, f64), width: f64, height: f64) -> Self {
        let (w, h) = (width / 2.0, height / 2.0);
        Self {
            left: center.0 - w,
            top: center.1 - h,
            right: center.0 + w,
            bottom: center.1 + h,
        }
    }

    pub(crate) fn center(&self) -> (f64, f64) {
        (
            f64::midpoint(self.left, self.right),
            f64::midpoint(self.top, self.bottom),
        )
    }

    pub(crate) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(crate) fn height(&self) -> f64 {
        self.bottom - self.top
    }

    pub(crate) fn overlap(&self, other: &Self) -> f64 {
        let w = self.right.min(other.right) - self.left.max(other.left);
        let h = self.bottom.min(other.bottom) - self.top.max(other.top);
        w.max(0.0) * h.max(0.0)
    }

    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && self.right >= other.right
            && self.bottom >= other.bottom
    }
}

/// Everything on one plot.
#[derive(Clone, Debug)]
pub(crate) struct Drawing {
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) shapes: Vec<Shape>,
}

/// Colour of text and axes.
pub(crate) const BLACK: Ink = Ink::rgb(0x22, 0x22, 0x22);
/// Colour of what explains and steps back.
pub(crate) const GREY: Ink = Ink::rgb(0x66, 0x66, 0x66);
/// Colour of grid lines.
pub(crate) const GRID: Ink = Ink::rgb(0xe3, 0xe3, 0xe3);
/// Colour of the paper.
pub(crate) const WHITE: Ink = Ink::rgb(0xff, 0xff, 0xff);

/// Usual size of text.
pub(crate) const TEXT: f64 = 12.0;
/// Size of labels beside points.
pub(crate) const SMALL: f64 = 10.5;

impl Drawing {
    pub(crate) fn new(width: f64, height: f64) -> Self {
        let paper = Rect {
            left: 0.0,
            top: 0.0,
            right: width,
            bottom: height,
        };
        Self {
            width,
            height,
            shapes: vec![Shape::Rect {
                area: paper,
                ink: WHITE,
            }],
        }
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink, width: f64) {
        self.path(vec![from, to], ink, width, None);
    }

    pub(crate) fn path(
        &mut self,
        points: Vec<(f64, f64)>,
        ink: Ink,
        width: f64,
        dash: Option<(f64, f64)>,
    ) {
        self.shapes.push(Shape::Path {
            points,
            ink,
            width,
            dash,
        });
    }

    pub(crate) fn polygon(&mut self, points: Vec<(f64, f64)>, ink: Ink) {
        self.shapes.push(Shape::Polygon { points, ink });
    }

    pub(crate) fn rect(&mut self, area: Rect, ink: Ink) {
        self.shapes.push(Shape::Rect { area, ink });
    }

    pub(crate) fn circle(&mut self, center: (f64, f64), radius: f64, ink: Ink) {
        self.shapes.push(Shape::Circle {
            center,
            radius,
            ink,
        });
    }

    pub(crate) fn text(&mut self, text: impl Into<String>, at: (f64, f64), align: Align) {
        self.push_text(Text::new(text, at, align));
    }

    pub(crate) fn push_text(&mut self, text: Text) {
        self.shapes.push(Shape::Text(text));
    }
}

impl Text {
    pub(crate) fn new(text: impl Into<String>, at: (f64, f64), align: Align) -> Self {
        let text = text.into();
        Self {
            text,
            at,
            align,
            size: TEXT,
            ink: BLACK,
            bold: false,
            upright: false,
        }
    }

    pub(crate) fn size(self, size: f64) -> Self {
        Self { size, ..self }
    }

    pub(crate) fn ink(self, ink: Ink) -> Self {
        Self { ink, ..self }
    }

    pub(crate) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(crate) fn upright(self) -> Self {
        Self {
            upright: true,
            ..self
        }
    }

    /// The rectangle a text covers.
    #[cfg(test)]
    pub(crate) fn area(&self) -> Rect {
        let width = if self.bold {
            super::font::bold_width
        } else {
            super::font::width
        };
        let width = width(&self.text, self.size);
        let shift = match self.align {
            Align::Left => width / 2.0,
            Align::Center => 0.0,
            Align::Right => -width / 2.0,
        };
        match self.upright {
            // Turned to the left: what was on the right is above.
            true => Rect::around((self.at.0, self.at.1 - shift), self.size, width),
            false => Rect::around((self.at.0 + shift, self.at.1), width, self.size),
        }
    }
}
