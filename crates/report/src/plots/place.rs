//! Puts labels beside their points so that no label covers another, a point or the edge.

use super::drawing::Rect;

/// A label to place: its point and its size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) point: (f64, f64),
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// What must not and what should not be covered.
pub(crate) struct Obstacles {
    /// Labels stay inside.
    pub(crate) inside: Rect,
    /// Never covered: the points.
    pub(crate) hard: Vec<Rect>,
    /// Covered only where nothing else is free: error bars and lines.
    pub(crate) soft: Vec<Rect>,
}

const DISTANCES: [f64; 11] = [
    7.0, 10.0, 15.0, 22.0, 31.0, 42.0, 55.0, 70.0, 90.0, 115.0, 145.0,
];
const ANGLES: usize = 24;
/// Room kept free around a label.
const CLEARANCE: f64 = 1.5;

/// A place for each label, in the order given, which is the order of priority; `None` for a label
/// that fits nowhere.
pub(crate) fn place(labels: &[Wanted], obstacles: &Obstacles) -> Vec<Option<Rect>> {
    let mut placed: Vec<Option<Rect>> = Vec::with_capacity(labels.len());
    let mut leaders: Vec<[(f64, f64); 2]> = Vec::new();
    for label in labels {
        let taken: Vec<Rect> = placed.iter().flatten().copied().collect();
        let fits = |r: &Rect| {
            let roomy = Rect::around(
                r.center(),
                r.width() + CLEARANCE * 2.0,
                r.height() + CLEARANCE,
            );
            obstacles.inside.contains(r)
                && taken
                    .iter()
                    .chain(&obstacles.hard)
                    .all(|o| roomy.overlap(o) == 0.0)
        };
        let cost = |r: &Rect| cost(label, r, obstacles, &taken, &leaders);
        let best = candidates(label)
            .filter(fits)
            .map(|r| (cost(&r), r))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, r)| r);
        leaders.extend(best.map(|r| [label.point, nearest(&r, label.point)]));
        placed.push(best);
    }
    placed
}

/// The point of a rectangle nearest to `point`: where a leader line ends.
pub(crate) fn nearest(r: &Rect, point: (f64, f64)) -> (f64, f64) {
    (
        point.0.clamp(r.left, r.right),
        point.1.clamp(r.top, r.bottom),
    )
}

fn candidates(label: &Wanted) -> impl Iterator<Item = Rect> {
    let label = *label;
    let angle = |i: usize| i as f64 * std::f64::consts::TAU / ANGLES as f64;
    DISTANCES.into_iter().flat_map(move |distance| {
        (0..ANGLES).map(move |i| {
            let (sin, cos) = angle(i).sin_cos();
            // The label's box touches the circle of this distance from outside.
            let x =
                label.point.0 + distance * cos + label.width / 2.0 * (2.0 * cos).clamp(-1.0, 1.0);
            let y =
                label.point.1 + distance * sin + label.height / 2.0 * (2.0 * sin).clamp(-1.0, 1.0);
            Rect::around((x, y), label.width, label.height)
        })
    })
}

/// Short leaders first; covering soft obstacles and crossing other leaders or labels costs.
fn cost(
    label: &Wanted,
    r: &Rect,
    obstacles: &Obstacles,
    taken: &[Rect],
    leaders: &[[(f64, f64); 2]],
) -> f64 {
    let end = nearest(r, label.point);
    let distance = (end.0 - label.point.0).hypot(end.1 - label.point.1);
    let covered: f64 = obstacles.soft.iter().map(|o| r.overlap(o)).sum();
    let crossings = leaders
        .iter()
        .filter(|l| crosses(label.point, end, l[0], l[1]))
        .count();
    let through = taken
        .iter()
        .chain(&obstacles.hard)
        .filter(|o| passes(label.point, end, o));
    distance + 0.35 * covered + 40.0 * (crossings + through.count()) as f64
}

/// Whether the way from `a` to `b` passes through a rectangle that `a` is not in.
fn passes(a: (f64, f64), b: (f64, f64), r: &Rect) -> bool {
    let inside = |(x, y): (f64, f64)| r.left < x && x < r.right && r.top < y && y < r.bottom;
    let step = |t: f64| (a.0 + (b.0 - a.0) * t, a.1 + (b.1 - a.1) * t);
    !inside(a) && (1..=20).any(|i| inside(step(f64::from(i) / 20.0)))
}

fn crosses(a: (f64, f64), b: (f64, f64), c: (f64, f64), d: (f64, f64)) -> bool {
    let side = |p: (f64, f64), q: (f64, f64), r: (f64, f64)| {
        (q.0 - p.0) * (r.1 - p.1) - (q.1 - p.1) * (r.0 - p.0)
    };
    side(a, b, c) * side(a, b, d) < 0.0 && side(c, d, a) * side(c, d, b) < 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: Rect = Rect {
        left: 0.0,
        top: 0.0,
        right: 800.0,
        bottom: 400.0,
    };

    fn dot(point: (f64, f64)) -> Rect {
        Rect::around(point, 10.0, 10.0)
    }

    #[test]
    fn forty_labels_in_a_narrow_cloud_overlap_neither_each_other_nor_points() {
        let point = |i: i32| {
            (
                250.0 + f64::from(i * 37 % 300),
                120.0 + f64::from(i * 53 % 160),
            )
        };
        let points: Vec<(f64, f64)> = (0..40).map(point).collect();
        let wanted: Vec<_> = points
            .iter()
            .map(|&point| Wanted {
                point,
                width: 62.0,
                height: 11.0,
            })
            .collect();
        let hard: Vec<_> = points.iter().map(|&p| dot(p)).collect();
        let obstacles = Obstacles {
            inside: INSIDE,
            hard: hard.clone(),
            soft: Vec::new(),
        };
        let placed: Vec<Rect> = place(&wanted, &obstacles).into_iter().flatten().collect();
        assert!(
            placed.len() >= 38,
            "only {} of 40 were placed",
            placed.len()
        );
        for (i, a) in placed.iter().enumerate() {
            assert!(INSIDE.contains(a));
            assert!(placed[..i].iter().chain(&hard).all(|b| a.overlap(b) == 0.0));
        }
    }

    #[test]
    fn a_label_alone_stays_close_and_one_without_room_is_left_out() {
        let label = Wanted {
            point: (400.0, 200.0),
            width: 60.0,
            height: 10.0,
        };
        let free = Obstacles {
            inside: INSIDE,
            hard: vec![dot(label.point)],
            soft: vec![],
        };
        let r = place(&[label], &free)[0].unwrap();
        let end = nearest(&r, label.point);
        assert!((end.0 - 400.0).hypot(end.1 - 200.0) < 12.0);
        let full = Obstacles {
            inside: INSIDE,
            hard: vec![INSIDE],
            soft: vec![],
        };
        assert_eq!(place(&[label], &full), [None]);
    }
}
