//! Horizontal bars: peak memory by part, and throughput.

use super::Study;
use super::axis::{Frame, Scale};
use super::drawing::{Align, BLACK, Drawing, GREY, Ink, Rect, TEXT, WHITE};
use super::font;
use super::legend::{Entry, Header, Key};
use super::mark::{Mark, families};
use crate::format;
use crate::record::MemoryInfo;

/// One bar: its parts from the left, and the marks on it.
struct Bar<'a> {
    label: &'a str,
    parts: Vec<(f64, Ink)>,
    /// What the bar is sorted by and labelled with.
    value: f64,
    text: String,
    /// Least and greatest over seeds.
    range: Option<(f64, f64)>,
    /// A value that was predicted.
    predicted: Option<f64>,
}

const ROW: f64 = 22.0;
const WIDTH: f64 = 880.0;

/// Parts of the peak with their colours; the last is what remains.
const PARTS: [(&str, Ink); 5] = [
    ("frozen base", Ink::rgb(0x00, 0x72, 0xb2)),
    ("trained weights", Ink::rgb(0xd5, 0x5e, 0x00)),
    ("gradients", Ink::rgb(0xe6, 0x9f, 0x00)),
    ("optimizer state", Ink::rgb(0xcc, 0x79, 0xa7)),
    (
        "activations and everything else",
        Ink::rgb(0xc4, 0xc4, 0xc4),
    ),
];

pub(crate) fn memory(study: Study<'_>) -> Result<Drawing, String> {
    let rows = study.summary.rows.iter();
    let measured: Vec<_> = rows
        .filter_map(|r| {
            Some((
                r.label.as_str(),
                r.memory.as_ref().filter(|m| m.measured_peak > 0)?,
            ))
        })
        .collect();
    let largest = measured
        .iter()
        .map(|(_, m)| m.measured_peak.max(m.predicted_peak))
        .max();
    let Some(largest) = largest else {
        return Err("no trial measured its memory".to_owned());
    };
    let (unit, bytes) = if largest < 1 << 30 {
        ("MiB", 1_u64 << 20)
    } else {
        ("GiB", 1 << 30)
    };
    let mut bars: Vec<_> = measured
        .iter()
        .map(|(label, m)| memory_bar(label, m, bytes))
        .collect();
    bars.sort_by(|a, b| a.value.total_cmp(&b.value));
    let mut legend: Vec<_> = PARTS
        .map(|(label, ink)| Entry {
            key: Key::Swatch(ink),
            label: label.to_owned(),
        })
        .into();
    if bars.iter().any(|b| b.predicted.is_some()) {
        legend.push(Entry {
            key: Key::Tick(BLACK),
            label: "predicted peak".to_owned(),
        });
    }
    let subtitle = "Measured peak of the process, without a GPU's memory; seed with the highest.";
    let header = Header {
        title: "Peak memory",
        subtitle,
        legend,
    };
    Ok(draw(&header, &bars, &format!("Peak memory ({unit})")))
}

fn memory_bar<'a>(label: &'a str, m: &MemoryInfo, unit: u64) -> Bar<'a> {
    let known = [m.base, m.adapter, m.gradients, m.optimizer];
    let rest = m.measured_peak.saturating_sub(known.iter().sum());
    let scaled = |bytes: u64| bytes as f64 / unit as f64;
    let sizes = known.into_iter().chain([rest]).map(scaled);
    Bar {
        label,
        parts: sizes.zip(PARTS.iter().map(|(_, ink)| *ink)).collect(),
        value: scaled(m.measured_peak),
        text: format::significant(scaled(m.measured_peak)),
        range: None,
        predicted: (m.predicted_peak > 0).then(|| scaled(m.predicted_peak)),
    }
}

pub(crate) fn throughput(study: Study<'_>) -> Result<Drawing, String> {
    let families = families(study.summary);
    let mut bars: Vec<Bar<'_>> = Vec::new();
    for (row, group) in study.summary.rows.iter().zip(study.groups) {
        let Some(value) = row.tokens_per_s else {
            continue;
        };
        let family = families.iter().position(|f| *f == row.family).unwrap_or(0);
        let seeds = group.chosen_runs().iter().map(|r| r.time.tokens_per_s);
        let range = seeds.fold((value, value), |(low, high), v| (low.min(v), high.max(v)));
        bars.push(Bar {
            label: &row.label,
            parts: vec![(value, Mark::of(family).ink)],
            value,
            text: format::count(value.round() as u64),
            range: (range.0 < range.1).then_some(range),
            predicted: None,
        });
    }
    if bars.is_empty() {
        return Err("no trial measured its throughput".to_owned());
    }
    bars.sort_by(|a, b| b.value.total_cmp(&a.value));
    let subtitle = "Bar: median over seeds, in the colour of the family. Line: slowest to fastest.";
    let header = Header {
        title: "Training throughput",
        subtitle,
        legend: Vec::new(),
    };
    Ok(draw(&header, &bars, "Tokens per second"))
}

fn draw(header: &Header<'_>, bars: &[Bar<'_>], title: &str) -> Drawing {
    let widest = bars
        .iter()
        .map(|b| font::width(b.label, TEXT))
        .fold(0.0, f64::max);
    let top = header.height(WIDTH);
    let height = ROW * bars.len() as f64 + 8.0;
    let area = Rect {
        left: 28.0 + widest,
        top,
        right: WIDTH - 70.0,
        bottom: top + height,
    };
    let ends = bars
        .iter()
        .flat_map(|b| [b.end(), b.predicted.unwrap_or(0.0)]);
    let frame = Frame {
        area,
        x: Scale::from_zero(ends, 0.02),
        y: Scale::linear([], (0.0, 1.0)),
    };
    let mut drawing = Drawing::new(WIDTH, area.bottom + 54.0);
    header.draw(&mut drawing);
    frame.draw_x(&mut drawing, &frame.x.ticks(8), title);
    for (i, bar) in bars.iter().enumerate() {
        bar.draw(
            &mut drawing,
            &frame,
            area.top + 4.0 + ROW * (i as f64 + 0.5),
        );
    }
    drawing.line((area.left, area.top), (area.left, area.bottom), GREY, 1.0);
    drawing
}

impl Bar<'_> {
    /// Where the ink of the bar ends.
    fn end(&self) -> f64 {
        let parts: f64 = self.parts.iter().map(|(size, _)| size).sum();
        parts.max(self.range.map_or(0.0, |(_, high)| high))
    }

    fn draw(&self, drawing: &mut Drawing, frame: &Frame, y: f64) {
        drawing.text(self.label, (frame.area.left - 8.0, y), Align::Right);
        let mut start = 0.0;
        for (size, ink) in &self.parts {
            let (left, right) = (frame.x(start), frame.x(start + size));
            drawing.rect(
                Rect {
                    left,
                    top: y - 7.5,
                    right,
                    bottom: y + 7.5,
                },
                *ink,
            );
            start += size;
        }
        if let Some((low, high)) = self.range {
            // The white rim keeps the line visible on dark bars.
            let (low, high) = (frame.x(low), frame.x(high));
            drawing.line((low - 1.0, y), (high + 1.0, y), WHITE, 3.5);
            drawing.line((low, y), (high, y), BLACK, 1.5);
        }
        if let Some(predicted) = self.predicted {
            let x = frame.x(predicted);
            drawing.line((x, y - 9.5), (x, y + 9.5), BLACK, 2.0);
        }
        let end = frame.x(self.end().max(self.predicted.unwrap_or(0.0)));
        drawing.text(&self.text, (end + 8.0, y), Align::Left);
    }
}
