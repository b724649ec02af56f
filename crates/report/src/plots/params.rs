//! Test score against trained parameters, with the Pareto front.

use super::Study;
use super::axis::{Frame, Scale, extent};
use super::drawing::{Align, Drawing, GREY, Rect, SMALL, Text, WHITE};
use super::font;
use super::legend::{Entry, Header, Key};
use super::mark::families;
use super::place::{Obstacles, Wanted, nearest, place};
use super::point::{Point, RADIUS, points};
use super::reference;
use crate::summary::Summary;

pub(crate) fn score_by_params(study: Study<'_>) -> Result<Drawing, String> {
    let summary = study.summary;
    let (points, references) = points(summary);
    if points.is_empty() {
        return Err("no method with trained parameters has a test score".to_owned());
    }
    let header = header(summary, &points);
    let shown = points.iter().filter(|p| !p.off);
    let levels: Vec<f64> = shown
        .flat_map(|p| [p.score - p.sd, p.score + p.sd])
        .collect();
    let near = reference::near(&references, extent(levels.iter().copied()));
    let width = 960.0;
    let top = header.height(width);
    // More labels need more room to stand apart.
    let height = 380.0 + 5.0 * points.len().min(60) as f64;
    let right = width - reference::margin(&references);
    let area = Rect {
        left: 76.0,
        top,
        right,
        bottom: top + height,
    };
    let frame = Frame {
        area,
        x: Scale::log(points.iter().map(|p| p.params)),
        y: Scale::linear(levels.into_iter().chain(near), super::bounds(summary)),
    };
    let mut drawing = Drawing::new(width, area.bottom + 54.0);
    header.draw(&mut drawing);
    frame.draw_x(
        &mut drawing,
        &frame.x.decades(),
        "Trained parameters (log scale)",
    );
    frame.draw_y(
        &mut drawing,
        &frame.y.ticks(8),
        &summary.metric.axis("Test"),
    );
    reference::draw(&mut drawing, &frame, &references);
    let front = front(&frame, &points);
    drawing.path(front.clone(), GREY, 1.25, Some((5.0, 3.0)));
    for point in &points {
        let x = frame.x(point.params);
        let (low, high) = point.bar(&frame);
        drawing.line((x, low), (x, high), point.mark.ink.faded(0.55), 1.5);
    }
    draw_labels(&mut drawing, &frame, &points, &front);
    for point in &points {
        point.mark.draw(&mut drawing, point.at(&frame), RADIUS);
    }
    Ok(drawing)
}

fn header<'a>(summary: &Summary, points: &[Point<'_>]) -> Header<'a> {
    let mut legend: Vec<Entry> = Vec::new();
    let shown = families(summary)
        .into_iter()
        .filter(|f| points.iter().any(|p| p.row.family == *f));
    let shown: Vec<_> = shown.collect();
    // Where every family has one label, the labels beside the points say it all.
    if shown.len() < points.len() {
        for family in shown {
            let mark = points
                .iter()
                .find(|p| p.row.family == family)
                .map(|p| p.mark);
            legend.extend(mark.map(|m| Entry {
                key: Key::Point(m),
                label: family.to_owned(),
            }));
        }
    }
    legend.push(Entry {
        key: Key::Dashed(GREY),
        label: "Pareto front".to_owned(),
    });
    Header {
        title: "Score by trained parameters",
        subtitle: if points
            .iter()
            .any(|p| p.row.test.is_some_and(|e| e.sd.is_some()))
        {
            "Point: mean over seeds. Bar: ± one standard deviation. Bold: on the Pareto front."
        } else {
            "One seed each. Bold: on the Pareto front."
        },
        legend,
    }
}

/// The best score within reach at each number of parameters, as a line of steps.
fn front(frame: &Frame, points: &[Point<'_>]) -> Vec<(f64, f64)> {
    let mut on: Vec<_> = points.iter().filter(|p| p.row.pareto).collect();
    on.sort_by(|a, b| a.params.total_cmp(&b.params));
    let mut line: Vec<(f64, f64)> = Vec::new();
    for point in on {
        let (x, y) = point.at(frame);
        if let Some(&(_, before)) = line.last() {
            line.push((x, before));
        }
        line.push((x, y));
    }
    line.extend(line.last().map(|&(_, y)| (frame.area.right, y)));
    line
}

fn draw_labels(drawing: &mut Drawing, frame: &Frame, points: &[Point<'_>], front: &[(f64, f64)]) {
    let mut order: Vec<&Point<'_>> = points.iter().collect();
    // The front is what readers look for, so its labels choose first.
    order.sort_by_key(|p| !p.row.pareto);
    let wanted: Vec<Wanted> = order
        .iter()
        .map(|p| {
            let width = if p.row.pareto {
                font::bold_width
            } else {
                font::width
            };
            let width = width(&p.label(frame), SMALL);
            Wanted {
                point: p.at(frame),
                width,
                height: SMALL,
            }
        })
        .collect();
    let bar = |p: &Point<'_>| {
        let (x, (bottom, top)) = (frame.x(p.params), p.bar(frame));
        Rect {
            left: x - 1.5,
            top,
            right: x + 1.5,
            bottom,
        }
    };
    let steps = front.windows(2).map(|pair| Rect {
        left: pair[0].0.min(pair[1].0) - 1.0,
        top: pair[0].1.min(pair[1].1) - 1.0,
        right: pair[0].0.max(pair[1].0) + 1.0,
        bottom: pair[0].1.max(pair[1].1) + 1.0,
    });
    let obstacles = Obstacles {
        inside: frame.area,
        hard: points
            .iter()
            .map(|p| Rect::around(p.at(frame), RADIUS * 2.4, RADIUS * 2.4))
            .collect(),
        soft: points.iter().map(bar).chain(steps).collect(),
    };
    for (point, area) in order.iter().zip(place(&wanted, &obstacles)) {
        if let Some(area) = area {
            draw_label(drawing, frame, point, area);
        }
    }
}

fn draw_label(drawing: &mut Drawing, frame: &Frame, point: &Point<'_>, area: Rect) {
    let at = point.at(frame);
    let end = nearest(&area, at);
    if (end.0 - at.0).hypot(end.1 - at.1) > 12.0 {
        drawing.line(at, end, GREY.faded(0.55), 0.75);
    }
    // Paper behind the letters, where a line or a bar could not be avoided.
    drawing.rect(area, WHITE.faded(0.65));
    let text = Text::new(point.label(frame), area.center(), Align::Center).size(SMALL);
    drawing.push_text(if point.row.pareto { text.bold() } else { text });
}
