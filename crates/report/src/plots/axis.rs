//! Scales, ticks and the frame of a plot.

use super::drawing::{Align, BLACK, Drawing, GREY, GRID, Rect, Text};
use crate::format;

/// Maps values of one axis to the unit interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    pub(crate) value: f64,
    pub(crate) label: String,
}

/// Share of the range left free at either end.
const PADDING: f64 = 0.06;

impl Scale {
    /// A linear scale that fits the values with some room, within `bounds` where data ends there.
    pub(crate) fn linear(values: impl IntoIterator<Item = f64>, bounds: (f64, f64)) -> Self {
        let (low, high) = extent(values);
        // Equal values still need a range around them to stand in.
        let room = if high > low {
            (high - low) * PADDING
        } else {
            low.abs().max(1.0) * 0.02
        };
        let low = (low - room).max(bounds.0.min(low));
        let high = (high + room).min(bounds.1.max(high));
        Self {
            low,
            high,
            log: false,
        }
    }

    /// A linear scale from zero, for lengths that are compared.
    pub(crate) fn from_zero(values: impl IntoIterator<Item = f64>, room: f64) -> Self {
        let (_, high) = extent(values);
        let high = if high > 0.0 { high } else { 1.0 };
        Self {
            low: 0.0,
            high: high * (1.0 + room),
            log: false,
        }
    }

    /// A logarithmic scale that fits the positive values with some room.
    pub(crate) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|v| *v > 0.0).map(f64::ln);
        let (low, high) = extent(positive);
        let room = if high > low {
            (high - low) * PADDING
        } else {
            0.7
        };
        Self {
            low: low - room,
            high: high + room,
            log: true,
        }
    }

    /// Where the value lies between the ends, from 0 to 1.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let value = if self.log {
            value.max(f64::MIN_POSITIVE).ln()
        } else {
            value
        };
        (value - self.low) / (self.high - self.low)
    }

    /// Round values across a linear scale, about `wanted` of them.
    pub(crate) fn ticks(&self, wanted: usize) -> Vec<Tick> {
        let rough = (self.high - self.low) / wanted.max(1) as f64;
        let magnitude = 10_f64.powf(rough.log10().floor());
        let nice = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|m| m * magnitude);
        let step = nice
            .into_iter()
            .find(|s| *s >= rough * 0.999)
            .unwrap_or(rough);
        let digits = (0..9).find(|d| {
            let scaled = step * 10_f64.powi(*d);
            (scaled - scaled.round()).abs() < 1e-6
        });
        let digits = digits.unwrap_or(0) as usize;
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last)
            .map(|i| i as f64 * step)
            .map(|value| Tick {
                value,
                label: format!("{value:.digits$}"),
            })
            .collect()
    }

    /// Powers of ten across a logarithmic scale, with twos and fives between where few would fit.
    pub(crate) fn decades(&self) -> Vec<Tick> {
        let (low, high) = (
            self.low / std::f64::consts::LN_10,
            self.high / std::f64::consts::LN_10,
        );
        let steps: &[f64] = if high - low < 2.5 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        (low.floor() as i32..=high.ceil() as i32)
            .flat_map(|e| steps.iter().map(move |s| s * 10_f64.powi(e)))
            .filter(|v| (-1e-9..=1.0 + 1e-9).contains(&self.place(*v)))
            .map(|value| Tick {
                value,
                label: short_count(value),
            })
            .collect()
    }
}

/// `10k` where [`format::count`] says `10.0k`.
fn short_count(value: f64) -> String {
    let text = format::count(value.round() as u64);
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = &text[digits.len()..];
    if digits.contains('.') {
        format!(
            "{}{unit}",
            digits.trim_end_matches('0').trim_end_matches('.')
        )
    } else {
        text
    }
}

/// Least and greatest of the finite values, `(0, 1)` without any.
pub(crate) fn extent(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let finite = values.into_iter().filter(|v| v.is_finite());
    let both = finite.fold(None, |range: Option<(f64, f64)>, v| {
        Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
    });
    both.unwrap_or((0.0, 1.0))
}

/// The plotting area with its two scales.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) area: Rect,
    pub(crate) x: Scale,
    pub(crate) y: Scale,
}

impl Frame {
    pub(crate) fn x(&self, value: f64) -> f64 {
        self.area.left + self.x.place(value) * self.area.width()
    }

    pub(crate) fn y(&self, value: f64) -> f64 {
        self.area.bottom - self.y.place(value) * self.area.height()
    }

    pub(crate) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x(x), self.y(y))
    }

    /// Grid lines and labels of the horizontal axis, with its title below.
    pub(crate) fn draw_x(&self, drawing: &mut Drawing, ticks: &[Tick], title: &str) {
        let Rect {
            left,
            right,
            top,
            bottom,
        } = self.area;
        for tick in ticks {
            let x = self.x(tick.value);
            drawing.line((x, top), (x, bottom), GRID, 1.0);
            drawing.text(&tick.label, (x, bottom + 13.0), Align::Center);
        }
        drawing.line((left, bottom), (right, bottom), GREY, 1.0);
        let at = (f64::midpoint(left, right), bottom + 34.0);
        drawing.push_text(Text::new(title, at, Align::Center).ink(BLACK));
    }

    /// Grid lines and labels of the vertical axis, with its title beside it.
    pub(crate) fn draw_y(&self, drawing: &mut Drawing, ticks: &[Tick], title: &str) {
        let Rect {
            left,
            right,
            top,
            bottom,
        } = self.area;
        for tick in ticks {
            let y = self.y(tick.value);
            drawing.line((left, y), (right, y), GRID, 1.0);
            drawing.text(&tick.label, (left - 7.0, y), Align::Right);
        }
        drawing.line((left, top), (left, bottom), GREY, 1.0);
        let at = (left - 54.0, f64::midpoint(top, bottom));
        drawing.push_text(Text::new(title, at, Align::Center).upright());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|t| t.label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_lie_on_the_scale() {
        let scale = Scale::linear([87.0, 93.0], (0.0, 100.0));
        assert_eq!(labels(&scale.ticks(6)), ["88", "90", "92"]);
        let fine = Scale::linear([0.5, 0.53], (0.0, 1.0));
        assert_eq!(labels(&fine.ticks(3)), ["0.50", "0.52"]);
    }

    #[test]
    fn equal_values_and_no_values_still_have_a_range() {
        for scale in [
            Scale::linear([90.0, 90.0], (0.0, 100.0)),
            Scale::linear([], (0.0, 1.0)),
        ] {
            assert!(
                scale.high > scale.low && !scale.ticks(5).is_empty(),
                "{scale:?}"
            );
        }
        let log = Scale::log([8.0]);
        assert!((log.place(8.0) - 0.5).abs() < 1e-12);
        assert!(Scale::from_zero([0.0], 0.1).high > 0.0);
    }

    #[test]
    fn a_scale_does_not_pass_the_bounds_of_its_metric() {
        let scale = Scale::linear([0.0, 100.0], (0.0, 100.0));
        assert_eq!((scale.place(0.0), scale.place(100.0)), (0.0, 1.0));
    }

    #[test]
    fn decades_of_a_wide_range_are_powers_of_ten() {
        let scale = Scale::log([1000.0, 80_000_000.0]);
        assert_eq!(
            labels(&scale.decades()),
            ["1k", "10k", "100k", "1M", "10M", "100M"]
        );
        assert_eq!(
            labels(&Scale::log([1000.0, 9000.0]).decades()),
            ["1k", "2k", "5k", "10k"]
        );
    }
}
