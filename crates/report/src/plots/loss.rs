//! Training loss against steps.

use std::collections::BTreeMap;

use super::Study;
use super::axis::{Frame, Scale, Tick};
use super::drawing::{Drawing, Rect};
use super::legend::{Entry, Header, Key};
use super::mark::{Mark, families};
use crate::record::Record;
use crate::stats::mean;

/// Lines on one plot at most; beyond that each family sends its best on dev, and of these the best.
const MOST_LINES: usize = 12;
/// Points of a curve at most.
const MOST_POINTS: usize = 300;

/// White in the colour of a family's largest size, and of the smaller ones after it.
const TINTS: [f64; 4] = [0.0, 0.3, 0.5, 0.62];
/// Their dashes.
const DASHES: [Option<(f64, f64)>; 4] =
    [None, Some((7.0, 3.0)), Some((3.0, 2.5)), Some((1.5, 2.5))];

/// A label's loss, by step.
struct Curve<'a> {
    label: &'a str,
    mark: Mark,
    dash: Option<(f64, f64)>,
    points: Vec<(f64, f64)>,
}

pub(crate) fn loss(study: Study<'_>) -> Result<Drawing, String> {
    let (curves, thinned) = curves(study);
    if curves.is_empty() {
        return Err("no trial that ended well logged its training loss".to_owned());
    }
    let entry = |c: &Curve<'_>| Entry {
        key: Key::Line(c.mark, c.dash),
        label: c.label.to_owned(),
    };
    let header = Header {
        title: "Training loss",
        subtitle: if thinned {
            "Mean over seeds at the chosen learning rate, smoothed. Of each family its best on dev; of \
             these the twelve best at most."
        } else {
            "Mean over seeds at the chosen learning rate, smoothed. Paler and dashed: smaller sizes."
        },
        legend: curves.iter().map(entry).collect(),
    };
    let width = 880.0;
    let top = header.height(width);
    let area = Rect {
        left: 76.0,
        top,
        right: width - 24.0,
        bottom: top + 380.0,
    };
    let points = || curves.iter().flat_map(|c| &c.points);
    let frame = Frame {
        area,
        x: Scale::from_zero(points().map(|p| p.0), 0.01),
        y: Scale::linear(points().map(|p| p.1), (0.0, f64::INFINITY)),
    };
    let mut drawing = Drawing::new(width, area.bottom + 54.0);
    header.draw(&mut drawing);
    frame.draw_x(&mut drawing, &whole(frame.x.ticks(8)), "Optimizer steps");
    frame.draw_y(&mut drawing, &frame.y.ticks(7), "Training loss");
    for (i, curve) in curves.iter().enumerate() {
        draw_curve(&mut drawing, &frame, curve, i as f64 / curves.len() as f64);
    }
    Ok(drawing)
}

/// There is no half step.
fn whole(ticks: Vec<Tick>) -> Vec<Tick> {
    ticks
        .into_iter()
        .filter(|t| !t.label.contains('.'))
        .collect()
}

fn curves(study: Study<'_>) -> (Vec<Curve<'_>>, bool) {
    let all: Vec<usize> = (0..study.groups.len())
        .filter(|&i| !averaged(study.groups[i].chosen_runs()).is_empty())
        .collect();
    let thinned = all.len() > MOST_LINES;
    let chosen = if thinned {
        best_of_families(study, &all)
    } else {
        all
    };
    let families = families(study.summary);
    let curve = |i: usize| {
        let row = &study.summary.rows[i];
        let family = families.iter().position(|f| *f == row.family);
        let larger = larger(study, &chosen, i);
        let mark = Mark::of(family.unwrap_or(0));
        Curve {
            label: study.groups[i].label,
            mark: mark.tinted(TINTS[larger.min(TINTS.len() - 1)]),
            dash: DASHES[larger.min(DASHES.len() - 1)],
            points: smoothed(&averaged(study.groups[i].chosen_runs())),
        }
    };
    (chosen.iter().copied().map(curve).collect(), thinned)
}

/// How many of the rows shown are of the same family and larger, or as large and before it.
fn larger(study: Study<'_>, shown: &[usize], i: usize) -> usize {
    let rows = &study.summary.rows;
    let size = |i: usize| rows[i].size.as_ref().map_or(0, |size| size.value);
    let before = |j: &&usize| (size(**j), i) > (size(i), **j);
    let family = shown.iter().filter(|j| rows[**j].family == rows[i].family);
    family.filter(before).count()
}

/// The best on dev of every family, in the families' order; of these [`MOST_LINES`] at most.
fn best_of_families(study: Study<'_>, among: &[usize]) -> Vec<usize> {
    let rows = &study.summary.rows;
    let dev = |i: usize| rows[i].dev.map(|dev| dev.mean);
    let better = |a: usize, b: usize| match (dev(a), dev(b)) {
        (Some(a), Some(b)) => study.summary.metric.better(a, b),
        (a, b) => a.is_some() && b.is_none(),
    };
    let best = |family: &str| {
        let members = among.iter().copied().filter(|&i| rows[i].family == family);
        members.reduce(|best, i| if better(i, best) { i } else { best })
    };
    let families: Vec<_> = families(study.summary)
        .into_iter()
        .filter_map(best)
        .collect();
    let beaten_by = |i: usize| families.iter().filter(|&&j| better(j, i)).count();
    let strong = families.iter().copied();
    strong
        .filter(|&i| beaten_by(i) < MOST_LINES)
        .take(MOST_LINES)
        .collect()
}

/// Mean loss over seeds at each step that every seed logged.
fn averaged(runs: &[&Record]) -> Vec<(f64, f64)> {
    let mut steps: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for point in runs.iter().flat_map(|r| &r.curve) {
        if let Some(loss) = point.train_loss.filter(|l| l.is_finite()) {
            steps.entry(point.step).or_default().push(loss);
        }
    }
    let complete = steps
        .iter()
        .filter(|(_, losses)| losses.len() == runs.len());
    complete
        .filter_map(|(step, losses)| Some((*step as f64, mean(losses)?)))
        .collect()
}

/// A centred moving mean over a fortieth of the curve, thinned to what can be seen.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 80;
    let window = |i: usize| {
        // The window shrinks on both sides near the ends, so that it stays centred.
        let reach = half.min(i).min(points.len() - 1 - i);
        let losses: Vec<f64> = points[i - reach..=i + reach].iter().map(|p| p.1).collect();
        mean(&losses).unwrap_or(points[i].1)
    };
    let stride = points.len().div_ceil(MOST_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    let kept = (0..points.len()).filter(|i| i % stride == 0 || *i == last);
    kept.map(|i| (points[i].0, window(i))).collect()
}

/// The line with a few of its marks, at places that differ from curve to curve by `phase`.
fn draw_curve(drawing: &mut Drawing, frame: &Frame, curve: &Curve<'_>, phase: f64) {
    let points: Vec<_> = curve.points.iter().map(|&(x, y)| frame.at(x, y)).collect();
    if points.len() > 1 {
        drawing.path(points.clone(), curve.mark.ink, 1.75, curve.dash);
    }
    let marks = 5.min(points.len());
    for i in 0..marks {
        let at = (i as f64 + 0.15 + 0.7 * phase) / marks as f64 * points.len() as f64;
        curve
            .mark
            .draw(drawing, points[(at as usize).min(points.len() - 1)], 4.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::record;
    use crate::group::groups;
    use crate::summary::Summary;

    #[test]
    fn a_family_is_one_colour_and_its_sizes_are_told_apart_by_shade_and_dash() {
        let labels = ["LoRA r4", "LoRA r8", "Houlsby 8", "LoRA r16"];
        let records = labels.map(|label| record(label, 1e-3, 1, 0.5, 0.5));
        let summary = Summary::of(&records).unwrap();
        let groups = groups(&records, &summary.metric);
        let study = Study {
            summary: &summary,
            groups: &groups,
        };
        let (curves, _) = curves(study);
        let of = |label: &str| curves.iter().find(|c| c.label == label).unwrap();
        let largest = of("LoRA r16");
        assert_eq!(largest.dash, None);
        for (place, label) in [(1, "LoRA r8"), (2, "LoRA r4")] {
            assert_eq!(of(label).mark, largest.mark.tinted(TINTS[place]));
            assert_eq!(of(label).dash, DASHES[place]);
        }
        let other = of("Houlsby 8");
        assert_eq!(other.dash, None);
        assert_ne!(other.mark.ink, largest.mark.ink);
    }

    #[test]
    fn of_many_families_the_twelve_best_on_dev_are_drawn() {
        let records: Vec<_> = (0..30)
            .map(|i| record(&format!("method-{i}"), 1e-3, 1, f64::from(i) / 30.0, 0.5))
            .collect();
        let summary = Summary::of(&records).unwrap();
        let groups = groups(&records, &summary.metric);
        let (curves, thinned) = curves(Study {
            summary: &summary,
            groups: &groups,
        });
        let mut shown: Vec<_> = curves.iter().map(|c| c.label.to_owned()).collect();
        shown.sort_by_key(|label| label["method-".len()..].parse::<u32>().unwrap());
        let expected: Vec<_> = (18..30).map(|i| format!("method-{i}")).collect();
        assert!(thinned);
        assert_eq!(shown, expected);
    }

    #[test]
    fn curves_are_averaged_over_the_steps_all_seeds_logged() {
        let mut a = record("LoRA r8", 1e-3, 1, 0.5, 0.5);
        let mut b = record("LoRA r8", 1e-3, 2, 0.5, 0.5);
        a.curve.truncate(2);
        b.curve.truncate(3);
        a.curve[0].train_loss = Some(3.0);
        b.curve[0].train_loss = Some(1.0);
        b.curve[1].train_loss = Some(f64::NAN);
        assert_eq!(averaged(&[&a, &b]), [(1.0, 2.0)]);
        assert_eq!(averaged(&[]), []);
    }

    #[test]
    fn smoothing_keeps_a_straight_line_straight_and_both_its_ends() {
        let line: Vec<_> = (0..1000)
            .map(|i| (f64::from(i), f64::from(1000 - i)))
            .collect();
        let smooth = smoothed(&line);
        assert!(smooth.len() <= MOST_POINTS + 1);
        assert!(smooth.iter().all(|(x, y)| (x + y - 1000.0).abs() < 1e-9));
        assert_eq!((smooth[0], *smooth.last().unwrap()), (line[0], line[999]));
    }
}
