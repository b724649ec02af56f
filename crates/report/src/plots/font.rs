//! The font of the plots, carried in the program so that no system font is needed.

use std::sync::Once;

use plotters::style::{FontDesc, FontFamily, FontStyle, register_font};

/// The name under which the font is registered, which an SVG carries as its `font-family`: Verdana
/// has nearly the same widths, for viewers without DejaVu.
pub(crate) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// Height of the font's line over its em; the bitmap backend takes sizes as heights.
pub(crate) const HEIGHT_PER_EM: f64 = 1.164;

static REGULAR: &[u8] = include_bytes!("../../assets/DejaVuSans.ttf");
static BOLD: &[u8] = include_bytes!("../../assets/DejaVuSans-Bold.ttf");
static REGISTERED: Once = Once::new();

/// Makes the font known to the drawing library.
pub(crate) fn register() {
    REGISTERED.call_once(|| {
        for (style, bytes) in [(FontStyle::Normal, REGULAR), (FontStyle::Bold, BOLD)] {
            // `InvalidFont` implements no trait that could be shown.
            if register_font(FAMILY, style, bytes).is_err() {
                unreachable!("the font in `assets` is a TrueType font");
            }
        }
    });
}

/// Width of `text` in logical pixels.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    measured(text, size, FontStyle::Normal)
}

/// Width of `text` set in bold.
pub(crate) fn bold_width(text: &str, size: f64) -> f64 {
    measured(text, size, FontStyle::Bold)
}

fn measured(text: &str, size: f64, style: FontStyle) -> f64 {
    register();
    // The library measures in whole pixels: measure large, then shrink.
    let large = 1000.0;
    let font = FontDesc::new(FontFamily::Name(FAMILY), large * HEIGHT_PER_EM, style);
    let ((left, _), (right, _)) = font.layout_box(text).unwrap_or_default();
    f64::from(right - left) * size / large
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_font_and_scale_with_its_size() {
        // DejaVu Sans: a digit is 1303 of 2048 units wide.
        let digit = 1303.0 / 2048.0;
        assert!(
            (width("8", 12.0) - 12.0 * digit).abs() < 0.05,
            "{}",
            width("8", 12.0)
        );
        assert!((width("8888", 24.0) - 96.0 * digit).abs() < 0.1);
        assert!(bold_width("8888", 24.0) > width("8888", 24.0));
        assert_eq!(width("", 12.0), 0.0);
    }
}
