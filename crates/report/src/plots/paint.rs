//! Paints a drawing through one generic function to SVG and to PNG.

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea as _};
use plotters::element::{Circle, PathElement, Polygon, Rectangle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    FontDesc, FontFamily, FontStyle, FontTransform, RGBAColor, ShapeStyle, TextStyle,
};

use super::drawing::{Align, Drawing, Ink, Shape, Text};
use super::font;

/// A drawing, painted.
pub(crate) struct Painted {
    pub(crate) svg: String,
    pub(crate) png: Vec<u8>,
}

/// SVG coordinates per logical pixel: the backend rounds to whole numbers, so draw on a finer grid.
const SVG_SCALE: u32 = 4;
/// PNG pixels per logical pixel.
const PNG_SCALE: u32 = 2;
/// The bitmap is drawn larger by this factor and averaged, which smooths every edge.
const OVERSAMPLE: u32 = 2;

/// How a backend's pixels and fonts relate to logical ones.
#[derive(Clone, Copy)]
struct Target {
    scale: f64,
    /// Font size to ask for, per em wanted.
    font: f64,
    /// Distance from the top of a text's box to its baseline, in em.
    baseline: f64,
}

pub(crate) fn paint(drawing: &Drawing) -> Result<Painted, String> {
    font::register();
    Ok(Painted {
        svg: svg(drawing)?,
        png: png(drawing)?,
    })
}

fn svg(drawing: &Drawing) -> Result<String, String> {
    let mut text = String::new();
    let size = pixels(drawing, SVG_SCALE);
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    // The SVG backend divides sizes by 1.24 and puts the baseline 0.76 em below the top.
    let target = Target {
        scale: f64::from(SVG_SCALE),
        font: 1.24,
        baseline: 0.76,
    };
    draw(drawing, &area, target)?;
    drop(area);
    let (fine, shown) = (dimensions(size), dimensions(pixels(drawing, 1)));
    Ok(text.replacen(&fine, &shown, 1))
}

fn png(drawing: &Drawing) -> Result<Vec<u8>, String> {
    let size = pixels(drawing, PNG_SCALE * OVERSAMPLE);
    let mut large = vec![0; size.0 as usize * size.1 as usize * 3];
    let area = BitMapBackend::with_buffer(&mut large, size).into_drawing_area();
    // The bitmap backend takes heights and puts the baseline half of one below the top.
    let font = font::HEIGHT_PER_EM;
    let scale = f64::from(PNG_SCALE * OVERSAMPLE);
    draw(
        drawing,
        &area,
        Target {
            scale,
            font,
            baseline: font / 2.0,
        },
    )?;
    drop(area);
    encode(&halved(&large, size), pixels(drawing, PNG_SCALE)).map_err(|e| e.to_string())
}

/// The backend encodes only to files, so it is given one.
fn encode(rgb: &[u8], size: (u32, u32)) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("plot.png");
    let mut backend = BitMapBackend::new(&path, size);
    backend.blit_bitmap((0, 0), size, rgb)?;
    backend.present()?;
    drop(backend);
    Ok(std::fs::read(&path)?)
}

fn pixels(drawing: &Drawing, scale: u32) -> (u32, u32) {
    let whole = |length: f64| length.round() as u32 * scale;
    (whole(drawing.width), whole(drawing.height))
}

fn dimensions((width, height): (u32, u32)) -> String {
    format!("width=\"{width}\" height=\"{height}\"")
}

fn draw<B: DrawingBackend>(
    drawing: &Drawing,
    area: &DrawingArea<B, Shift>,
    target: Target,
) -> Result<(), String> {
    for shape in &drawing.shapes {
        draw_shape(shape, area, target).map_err(|e| e.to_string())?;
    }
    area.present().map_err(|e| e.to_string())
}

type Drawn<B> =
    Result<(), plotters::drawing::DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn draw_shape<B: DrawingBackend>(
    shape: &Shape,
    area: &DrawingArea<B, Shift>,
    target: Target,
) -> Drawn<B> {
    let at = |(x, y): (f64, f64)| target.at(x, y);
    let all = |points: &[(f64, f64)]| points.iter().map(|p| at(*p)).collect::<Vec<_>>();
    match shape {
        Shape::Path {
            points,
            ink,
            width,
            dash,
        } => {
            let style = ShapeStyle {
                color: color(*ink),
                filled: false,
                stroke_width: target.stroke(*width),
            };
            for part in dash.map_or_else(|| vec![points.clone()], |d| dashes(points, d)) {
                area.draw(&PathElement::new(all(&part), style))?;
            }
            Ok(())
        }
        Shape::Polygon { points, ink } => area.draw(&Polygon::new(all(points), filled(*ink))),
        Shape::Rect { area: r, ink } => {
            let corners = [at((r.left, r.top)), at((r.right, r.bottom))];
            area.draw(&Rectangle::new(corners, filled(*ink)))
        }
        Shape::Circle {
            center,
            radius,
            ink,
        } => {
            let radius = (radius * target.scale).round() as i32;
            area.draw(&Circle::new(at(*center), radius, filled(*ink)))
        }
        Shape::Text(text) => draw_text(text, area, target),
    }
}

fn draw_text<B: DrawingBackend>(
    text: &Text,
    area: &DrawingArea<B, Shift>,
    target: Target,
) -> Drawn<B> {
    // Half a capital's height (0.729 em) below the middle is the baseline.
    let top = text.size * (0.729 / 2.0 - target.baseline);
    let (at, turn) = if text.upright {
        ((text.at.0 + top, text.at.1), FontTransform::Rotate270)
    } else {
        ((text.at.0, text.at.1 + top), FontTransform::None)
    };
    let horizontal = match text.align {
        Align::Left => HPos::Left,
        Align::Center => HPos::Center,
        Align::Right => HPos::Right,
    };
    let weight = if text.bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    let size = text.size * target.font * target.scale;
    let font = FontDesc::new(FontFamily::Name(font::FAMILY), size, weight);
    let ink = color(text.ink);
    let style = TextStyle::from(font.transform(turn))
        .color(&ink)
        .pos(Pos::new(horizontal, VPos::Top));
    area.draw_text(&text.text, &style, target.at(at.0, at.1))
}

impl Target {
    fn at(self, x: f64, y: f64) -> (i32, i32) {
        (
            (x * self.scale).round() as i32,
            (y * self.scale).round() as i32,
        )
    }

    fn stroke(self, width: f64) -> u32 {
        (width * self.scale).round().max(1.0) as u32
    }
}

fn color(ink: Ink) -> RGBAColor {
    RGBAColor(ink.rgb.0, ink.rgb.1, ink.rgb.2, ink.alpha)
}

fn filled(ink: Ink) -> ShapeStyle {
    ShapeStyle {
        color: color(ink),
        filled: true,
        stroke_width: 0,
    }
}

/// A path cut into dashes of length `on`, `off` apart.
fn dashes(points: &[(f64, f64)], (on, off): (f64, f64)) -> Vec<Vec<(f64, f64)>> {
    let mut parts = Vec::new();
    let (mut left, mut inked) = (on, true);
    let mut part: Vec<(f64, f64)> = points.first().copied().into_iter().collect();
    for pair in points.windows(2) {
        let (mut from, to) = (pair[0], pair[1]);
        let mut length = (to.0 - from.0).hypot(to.1 - from.1);
        while length > left {
            let t = left / length;
            from = (from.0 + (to.0 - from.0) * t, from.1 + (to.1 - from.1) * t);
            length -= left;
            part.push(from);
            if inked {
                parts.push(std::mem::take(&mut part));
            }
            part = vec![from];
            inked = !inked;
            left = if inked { on } else { off };
        }
        left -= length;
        part.push(to);
    }
    if inked && part.len() > 1 {
        parts.push(part);
    }
    parts
}

/// An RGB image at half its width and height: every pixel the mean of four.
fn halved(rgb: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
    let (width, height) = (width as usize, height as usize);
    let at = |x: usize, y: usize, c: usize| u16::from(rgb[(y * width + x) * 3 + c]);
    let mut out = Vec::with_capacity(width / 2 * (height / 2) * 3);
    for y in (0..height).step_by(2) {
        for x in (0..width).step_by(2) {
            for c in 0..3 {
                let sum = at(x, y, c) + at(x + 1, y, c) + at(x, y + 1, c) + at(x + 1, y + 1, c);
                out.push(((sum + 2) / 4) as u8);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_follow_the_path_around_a_corner() {
        let parts = dashes(&[(0.0, 0.0), (5.0, 0.0), (5.0, 5.0)], (4.0, 2.0));
        assert_eq!(
            parts,
            [vec![(0.0, 0.0), (4.0, 0.0)], vec![(5.0, 1.0), (5.0, 5.0)]]
        );
    }

    #[test]
    fn a_drawing_is_painted_at_twice_its_size_as_png_and_at_its_own_as_svg() {
        let mut drawing = Drawing::new(80.0, 50.0);
        drawing.text("a < b", (40.0, 25.0), Align::Center);
        let painted = paint(&drawing).unwrap();
        assert!(
            painted
                .svg
                .starts_with("<svg width=\"80\" height=\"50\" viewBox=\"0 0 320 200\"")
        );
        assert!(painted.svg.contains("a &lt; b") && painted.svg.trim_end().ends_with("</svg>"));
        // PNG: signature, then width and height in the first chunk.
        assert_eq!(&painted.png[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(painted.png[16..24], [0, 0, 0, 160, 0, 0, 0, 100]);
    }

    #[test]
    fn averaging_halves_an_image() {
        let rgb = [[0; 3], [100; 3], [200; 3], [100; 3]].concat();
        assert_eq!(halved(&rgb, (2, 2)), [100; 3]);
    }
}
