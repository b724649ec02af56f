//! Every plot over ordinary and degenerate records.

use super::drawing::Shape;
use super::*;
use crate::fixture::{diverged, failed, record};
use crate::group::groups;
use crate::record::Record;

fn with_study<T>(records: &[Record], then: impl FnOnce(Study<'_>) -> T) -> T {
    let summary = Summary::of(records).unwrap();
    let groups = groups(records, &summary.metric);
    then(Study {
        summary: &summary,
        groups: &groups,
    })
}

fn plots(records: &[Record]) -> Plots {
    with_study(records, |study| draw(study).unwrap())
}

fn names(plots: &Plots) -> Vec<&str> {
    plots.drawn.iter().map(|p| p.name).collect()
}

/// Twelve families, those with a size at three of them, two learning rates and two seeds each.
fn many() -> Vec<Record> {
    let mut records = Vec::new();
    for family in 0..12_u32 {
        for size in [4, 16, 64] {
            for (lr, seed) in [(1e-4, 1), (1e-4, 2), (1e-3, 1), (1e-3, 2)] {
                let letter = char::from(b'A' + family as u8);
                let label = match family {
                    0..9 => format!("Method{letter} r{size}"),
                    _ => format!("Method{letter}"),
                };
                let score = 0.8 + f64::from(family) / 100.0 + f64::from(size) / 1000.0;
                let score = score + if seed == 1 { lr } else { -lr };
                records.push(record(&label, lr, seed, score, score));
            }
        }
    }
    records
}

/// No text covers another or leaves the paper.
fn assert_legible(drawing: &Drawing, name: &str) {
    let texts = drawing.shapes.iter().filter_map(|shape| match shape {
        Shape::Text(text) if !text.text.is_empty() => Some(text),
        _ => None,
    });
    let areas: Vec<_> = texts.map(|t| (t.text.as_str(), t.area())).collect();
    for (i, (text, area)) in areas.iter().enumerate() {
        let inside = area.left >= 0.0 && area.right <= drawing.width;
        let inside = inside && area.top >= 0.0 && area.bottom <= drawing.height;
        assert!(inside, "{name}: `{text}` leaves the paper");
        for (other, second) in &areas[..i] {
            assert!(
                area.overlap(second) == 0.0,
                "{name}: `{text}` covers `{other}`"
            );
        }
    }
}

fn assert_sound(plot: &Plot) {
    let (svg, name) = (&plot.svg, plot.name);
    assert!(
        svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"),
        "{name}"
    );
    assert_eq!(
        svg.matches("<text").count(),
        svg.matches("</text>").count(),
        "{name}"
    );
    assert!(
        svg.matches("<rect").count() + svg.matches("<polyline").count() > 3,
        "{name}"
    );
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
    // A coordinate that overflowed would be clamped to the ends of its type.
    assert!(
        !svg.contains("2147483647") && !svg.contains("-2147483648"),
        "{name}"
    );
    assert!(plot.png.len() > 2000, "{name} is {} bytes", plot.png.len());
}

#[test]
fn every_plot_of_a_full_study_is_drawn_and_legible() {
    let records = many();
    let plots = plots(&records);
    assert_eq!(names(&plots), PLOTS.map(|(name, _, _)| name));
    plots.drawn.iter().for_each(assert_sound);
    with_study(&records, |study| {
        for (name, _, draw) in PLOTS {
            assert_legible(&draw(study).unwrap(), name);
        }
    });
}

#[test]
fn a_study_of_one_learning_rate_has_all_but_the_heat_map() {
    let plots = plots(&[
        record("LoRA r8", 1e-3, 1, 0.9, 0.9),
        record("LoRA r4", 1e-3, 1, 0.8, 0.8),
    ]);
    assert_eq!(
        names(&plots),
        [
            "score_by_params",
            "score_by_size",
            "memory",
            "throughput",
            "loss"
        ]
    );
    plots.drawn.iter().for_each(assert_sound);
    assert_eq!(plots.skipped[0].0, "heat");
}

#[test]
fn a_study_of_failures_alone_has_no_plot_and_says_why() {
    let records = [
        failed("LoRA r8", 1e-3, 1, diverged()),
        failed("LoRA r4", 1e-3, 1, diverged()),
    ];
    let plots = plots(&records);
    assert_eq!((plots.drawn.len(), plots.skipped.len()), (0, PLOTS.len()));
    assert!(plots.skipped.iter().all(|(_, reason)| !reason.is_empty()));
}

#[test]
fn equal_scores_and_a_perfect_score_are_drawn() {
    for score in [0.0, 0.5, 1.0] {
        let mut records: Vec<_> = [4, 8, 16]
            .iter()
            .flat_map(|size| {
                [1, 2].map(|s| record(&format!("LoRA r{size}"), 1e-3, s, score, score))
            })
            .collect();
        records.push(record("Full", 1e-3, 1, score, score));
        records.push(record("Full", 1e-4, 1, score, score));
        let plots = plots(&records);
        assert_eq!(plots.drawn.len(), PLOTS.len());
        plots.drawn.iter().for_each(assert_sound);
    }
}

#[test]
fn a_loss_that_is_lower_is_better_and_numbers_that_are_not_finite_are_drawn() {
    let mut records: Vec<_> = [1e-4, 1e-3]
        .map(|lr| record("LoRA r8", lr, 1, 3.5, 3.5))
        .into();
    records.push(failed("LoRA r4", 1e-3, 1, diverged()));
    for r in &mut records {
        r.trial.metric = "perplexity".into();
        r.trial.higher_is_better = false;
        r.curve[3].train_loss = Some(f64::NAN);
        r.time.tokens_per_s = f64::NAN;
        for metrics in r.scores.values_mut() {
            metrics.insert("perplexity".into(), 21.5);
        }
    }
    let plots = plots(&records);
    plots.drawn.iter().for_each(assert_sound);
    assert!(!names(&plots).contains(&"throughput"));
    let heat = plots.drawn.iter().find(|p| p.name == "heat").unwrap();
    assert!(heat.svg.contains("lower is better"));
}

#[test]
fn methods_without_trained_parameters_are_a_dashed_line() {
    let mut records = vec![
        record("LoRA r8", 1e-3, 1, 0.9, 0.9),
        record("Zero", 1e-3, 1, 0.6, 0.6),
    ];
    records[1].budget.trainable = 0;
    let plots = plots(&records);
    plots.drawn.iter().for_each(assert_sound);
    assert!(plots.drawn[0].svg.contains("Zero"));
}

#[test]
fn the_title_of_an_axis_stays_on_the_paper_however_many_kinds_of_size_there_are() {
    let mut records = Vec::new();
    for (place, name) in [
        "rank",
        "bottleneck",
        "num_virtual_tokens",
        "n_frequency",
        "block_size",
    ]
    .into_iter()
    .enumerate()
    {
        for size in [4, 8] {
            let mut one = record(&format!("Method{place} r{size}"), 1e-3, 1, 0.5, 0.5);
            one.trial.size.as_mut().unwrap().name = format!("{name}_of_the_method");
            records.push(one);
        }
    }
    with_study(&records, |study| {
        assert_legible(&size::score_by_size(study).unwrap(), "score_by_size");
    });
}
