//! Mean dev score of every size and learning rate, one panel per family.

use super::Study;
use super::drawing::{Align, BLACK, Drawing, GREY, Ink, Rect, SMALL, Text};
use super::font;
use super::legend::Header;
use super::mark::families;
use super::shade::{Range, readable_on};
use crate::format;
use crate::group::{Group, Rate};
use crate::summary::Summary;

const WIDTH: f64 = 960.0;
const CELL: (f64, f64) = (52.0, 25.0);
const MARGIN: f64 = 16.0;
/// Colour of a cell whose trials all failed.
const FAILED: Ink = Ink::rgb(0xdd, 0xdd, 0xdd);

/// A family's table: a row per label, a column per learning rate.
struct Panel<'a> {
    family: &'a str,
    size: Option<&'a str>,
    rows: Vec<(String, &'a Group<'a>)>,
    rates: Vec<f64>,
}

pub(crate) fn heat(study: Study<'_>) -> Result<Drawing, String> {
    let panels: Vec<_> = families(study.summary)
        .into_iter()
        .filter_map(|f| Panel::of(study, f))
        .collect();
    let scores: Vec<f64> = panels.iter().flat_map(Panel::scores).collect();
    if scores.is_empty() {
        return Err("no family was tried at more than one learning rate".to_owned());
    }
    let metric = &study.summary.metric;
    let title = format!("{} by size and learning rate", metric.axis("Dev"));
    let header = Header {
        title: &title,
        subtitle: "Mean over the seeds run at every rate. Outlined: the learning rate chosen. \
                   *: some seeds failed. ✗: all failed.",
        legend: Vec::new(),
    };
    let range = Range::of(&scores, study.summary);
    let top = header.height(WIDTH);
    let (places, bottom) = flow(&panels, top);
    let mut drawing = Drawing::new(WIDTH, bottom + 52.0);
    header.draw(&mut drawing);
    for (panel, at) in panels.iter().zip(places) {
        panel.draw(&mut drawing, at, &range, study.summary);
    }
    range.draw(&mut drawing, (MARGIN, bottom + 16.0), study.summary);
    Ok(drawing)
}

/// Left top corners of the panels set in lines, and where the last line ends.
fn flow(panels: &[Panel<'_>], top: f64) -> (Vec<(f64, f64)>, f64) {
    let (mut x, mut y, mut line) = (MARGIN, top, 0.0_f64);
    let mut places = Vec::new();
    for panel in panels {
        let (width, height) = panel.extent();
        if x > MARGIN && x + width > WIDTH - MARGIN {
            (x, y, line) = (MARGIN, y + line + 22.0, 0.0);
        }
        places.push((x, y));
        x += width + 26.0;
        line = line.max(height);
    }
    (places, y + line)
}

impl<'a> Panel<'a> {
    /// The family's panel, unless it was tried at one learning rate only.
    fn of(study: Study<'a>, family: &'a str) -> Option<Self> {
        let members = study.summary.rows.iter().zip(study.groups);
        let mut members: Vec<_> = members.filter(|(row, _)| row.family == family).collect();
        members.sort_by_key(|(row, _)| row.size.as_ref().map(|s| s.value));
        let size = members.first()?.0.size.as_ref().map(|s| s.name.as_str());
        let name = |row: &crate::summary::Row| match &row.size {
            Some(size) => size.value.to_string(),
            // The heading says it already.
            None if row.label == family => String::new(),
            None => format::cut(&row.label, 18),
        };
        let mut rates: Vec<f64> = members
            .iter()
            .flat_map(|(_, g)| &g.rates)
            .map(|r| r.learning_rate)
            .collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup_by(|a, b| format::rate(*a) == format::rate(*b));
        let rows: Vec<_> = members
            .into_iter()
            .map(|(row, group)| (name(row), group))
            .collect();
        (rates.len() > 1).then_some(Self {
            family,
            size,
            rows,
            rates,
        })
    }

    fn scores(&self) -> impl Iterator<Item = f64> {
        let groups = self.rows.iter().map(|(_, group)| group);
        groups.flat_map(|group| group.compared()).flatten()
    }

    fn label_width(&self) -> f64 {
        let widest = self
            .rows
            .iter()
            .map(|(l, _)| font::width(l, SMALL))
            .fold(0.0, f64::max);
        widest + 8.0
    }

    fn extent(&self) -> (f64, f64) {
        let table = self.label_width() + CELL.0 * self.rates.len() as f64;
        let width = table.max(font::bold_width(&self.heading(), SMALL));
        (width, 44.0 + CELL.1 * self.rows.len() as f64)
    }

    /// `LoRA (rank)`
    fn heading(&self) -> String {
        self.size.map_or_else(
            || self.family.to_owned(),
            |s| format!("{} ({s})", self.family),
        )
    }

    fn draw(&self, drawing: &mut Drawing, (x, y): (f64, f64), range: &Range, summary: &Summary) {
        let heading = Text::new(self.heading(), (x, y + 8.0), Align::Left)
            .size(SMALL)
            .bold();
        drawing.push_text(heading);
        let (left, top) = (x + self.label_width(), y + 40.0);
        for (i, rate) in self.rates.iter().enumerate() {
            let at = (left + CELL.0 * (i as f64 + 0.5), top - 9.0);
            drawing.push_text(Text::new(format::rate(*rate), at, Align::Center).size(SMALL));
        }
        for (j, (label, group)) in self.rows.iter().enumerate() {
            let middle = top + CELL.1 * (j as f64 + 0.5);
            drawing.push_text(Text::new(label, (left - 6.0, middle), Align::Right).size(SMALL));
            let scores = group.compared();
            for (k, (rate, score)) in group.rates.iter().zip(scores).enumerate() {
                let name = format::rate(rate.learning_rate);
                let column = self.rates.iter().position(|r| format::rate(*r) == name);
                let x = left + CELL.0 * (column.unwrap_or(0) as f64 + 0.5);
                let area = Rect::around((x, middle), CELL.0 - 5.0, CELL.1 - 6.0);
                draw_cell(drawing, area, (rate, score), range, summary);
                if group.chosen == Some(k) {
                    outline(drawing, area);
                }
            }
        }
    }
}

fn draw_cell(
    drawing: &mut Drawing,
    area: Rect,
    (rate, score): (&Rate<'_>, Option<f64>),
    range: &Range,
    summary: &Summary,
) {
    let Some(score) = score else {
        drawing.rect(area, FAILED);
        let sign = if rate.ok.is_empty() { "✗" } else { "–" };
        drawing.push_text(
            Text::new(sign, area.center(), Align::Center)
                .size(SMALL)
                .ink(GREY),
        );
        return;
    };
    let color = range.color(score);
    drawing.rect(area, color);
    let star = if rate.failed.is_empty() { "" } else { "*" };
    let value = summary.metric.scaled(score);
    let digits = if summary.metric.is_fraction() { 1 } else { 2 };
    let text = Text::new(
        format!("{value:.digits$}{star}"),
        area.center(),
        Align::Center,
    );
    drawing.push_text(text.size(SMALL).ink(readable_on(color)));
}

/// A frame just outside the cell.
fn outline(drawing: &mut Drawing, area: Rect) {
    let Rect {
        left,
        top,
        right,
        bottom,
    } = area;
    let side = |left: f64, top: f64, right: f64, bottom: f64| Rect {
        left,
        top,
        right,
        bottom,
    };
    let width = 1.75;
    for area in [
        side(left - width, top - width, right + width, top),
        side(left - width, bottom, right + width, bottom + width),
        side(left - width, top, left, bottom),
        side(right, top, right + width, bottom),
    ] {
        drawing.rect(area, BLACK);
    }
}
