//! Test score against rank or bottleneck.

use std::collections::BTreeSet;

use super::Study;
use super::axis::{Frame, Scale, Tick, extent};
use super::drawing::{Drawing, Rect};
use super::legend::{Entry, Header, Key};
use super::mark::{Mark, families};
use super::reference::{self, Reference};
use crate::stats::Estimate;
use crate::summary::{Row, Summary};

/// A family's scores by size, in the metric's own unit.
struct Series<'a> {
    family: &'a str,
    mark: Mark,
    /// Size and score, by ascending size.
    points: Vec<(f64, Estimate)>,
}

pub(crate) fn score_by_size(study: Study<'_>) -> Result<Drawing, String> {
    let summary = study.summary;
    let series = series(summary);
    if series.is_empty() {
        return Err("no method with a rank or bottleneck has a test score".to_owned());
    }
    if series.iter().all(|s| s.points.len() < 2) {
        return Err("no method was tried at more than one size".to_owned());
    }
    let references = references(summary);
    let spread = |e: &Estimate| [e.mean - e.sd.unwrap_or(0.0), e.mean + e.sd.unwrap_or(0.0)];
    let points = || series.iter().flat_map(|s| &s.points);
    let levels: Vec<f64> = points()
        .flat_map(|(_, e)| spread(e))
        .map(|v| summary.metric.scaled(v))
        .collect();
    let near = reference::near(&references, extent(levels.iter().copied()));
    let levels = levels.into_iter().chain(near);
    let header = header(summary, &series);
    let width = 840.0;
    let top = header.height(width);
    let area = Rect {
        left: 76.0,
        top,
        right: width - reference::margin(&references),
        bottom: top + 390.0,
    };
    let frame = Frame {
        area,
        x: Scale::log(points().map(|(size, _)| *size)),
        y: Scale::linear(levels, super::bounds(summary)),
    };
    let mut drawing = Drawing::new(width, area.bottom + 54.0);
    header.draw(&mut drawing);
    frame.draw_x(
        &mut drawing,
        &ticks(&series),
        &format!("{} (log scale)", size_names(summary)),
    );
    frame.draw_y(
        &mut drawing,
        &frame.y.ticks(7),
        &summary.metric.axis("Test"),
    );
    reference::draw(&mut drawing, &frame, &references);
    for s in &series {
        draw_band(&mut drawing, &frame, s, summary);
    }
    for s in &series {
        draw_line(&mut drawing, &frame, s, summary);
    }
    Ok(drawing)
}

fn header<'a>(summary: &Summary, series: &[Series<'_>]) -> Header<'a> {
    let entry = |s: &Series<'_>| Entry {
        key: Key::Line(s.mark, None),
        label: s.family.to_owned(),
    };
    let spread = summary
        .rows
        .iter()
        .any(|r| r.test.is_some_and(|e| e.sd.is_some()));
    Header {
        title: "Score by size",
        subtitle: if spread {
            "Line: mean over seeds. Band: ± one standard deviation. Dashed: methods without a size."
        } else {
            "One seed each. Dashed: methods without a size."
        },
        legend: series.iter().map(entry).collect(),
    }
}

fn series(summary: &Summary) -> Vec<Series<'_>> {
    let point = |row: &Row| Some((row.size.as_ref()?.value as f64, row.test?));
    let of = |(i, family): (usize, &'_ str)| -> (usize, Vec<(f64, Estimate)>) {
        let rows = summary.rows.iter().filter(|row| row.family == family);
        let mut points: Vec<_> = rows
            .filter_map(point)
            .filter(|(size, _)| *size > 0.0)
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (i, points)
    };
    let families = families(summary);
    let all: Vec<_> = families.iter().copied().enumerate().map(of).collect();
    all.into_iter()
        .filter(|(_, points)| !points.is_empty())
        .map(|(i, points)| Series {
            family: families[i],
            mark: Mark::of(i),
            points,
        })
        .collect()
}

fn references(summary: &Summary) -> Vec<Reference<'_>> {
    let families = families(summary);
    let of = |row: &'_ Row| families.iter().position(|f| *f == row.family);
    let unsized_rows = summary.rows.iter().filter(|row| row.size.is_none());
    unsized_rows
        .filter_map(|row| {
            let level = summary.metric.scaled(row.test?.mean);
            Some(Reference {
                label: &row.label,
                level,
                ink: Mark::of(of(row)?).ink,
            })
        })
        .collect()
}

/// The sizes that were tried; a logarithmic axis of few values needs no others.
fn ticks(series: &[Series<'_>]) -> Vec<Tick> {
    let sizes: BTreeSet<u64> = series
        .iter()
        .flat_map(|s| &s.points)
        .map(|(size, _)| *size as u64)
        .collect();
    // Sizes closer than a factor of 1.2 would write over each other.
    let mut shown: Vec<u64> = Vec::new();
    for size in sizes {
        if shown
            .last()
            .is_none_or(|last| size as f64 >= *last as f64 * 1.2)
        {
            shown.push(size);
        }
    }
    shown
        .into_iter()
        .map(|s| Tick {
            value: s as f64,
            label: s.to_string(),
        })
        .collect()
}

/// Kinds of size that the axis names; a title of more would leave the paper.
const MOST_NAMES: usize = 3;

/// `Bottleneck / rank`: every kind of size that is on the axis.
fn size_names(summary: &Summary) -> String {
    let names: BTreeSet<&str> = summary
        .rows
        .iter()
        .filter_map(|row| row.size.as_ref())
        .map(|s| s.name.as_str())
        .collect();
    if names.len() > MOST_NAMES {
        return "Size (rank, bottleneck, ...)".to_owned();
    }
    let joined = names.into_iter().collect::<Vec<_>>().join(" / ");
    let mut chars = joined.chars();
    chars
        .next()
        .map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

fn draw_band(drawing: &mut Drawing, frame: &Frame, series: &Series<'_>, summary: &Summary) {
    let edge = |sign: f64| {
        move |(size, e): &(f64, Estimate)| {
            let level = e.mean + sign * e.sd.unwrap_or(0.0);
            frame.at(*size, summary.metric.scaled(level))
        }
    };
    if series.points.len() > 1 {
        let upper = series.points.iter().map(edge(1.0));
        let lower = series.points.iter().rev().map(edge(-1.0));
        drawing.polygon(upper.chain(lower).collect(), series.mark.ink.faded(0.1));
    } else {
        // A band of one point has no area.
        let (upper, lower) = (edge(1.0)(&series.points[0]), edge(-1.0)(&series.points[0]));
        drawing.line(upper, lower, series.mark.ink, 1.5);
    }
}

fn draw_line(drawing: &mut Drawing, frame: &Frame, series: &Series<'_>, summary: &Summary) {
    let at = |(size, e): &(f64, Estimate)| frame.at(*size, summary.metric.scaled(e.mean));
    let points: Vec<_> = series.points.iter().map(at).collect();
    if points.len() > 1 {
        drawing.path(points.clone(), series.mark.ink, 2.0, None);
    }
    for point in points {
        series.mark.draw(drawing, point, 4.5);
    }
}
