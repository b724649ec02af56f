//! What the pages show, and that they show it safely.

use crate::fixture::{diverged, failed, predictions, record};
use crate::group::groups;
use crate::plots::{self, Study};
use crate::record::{Record, Sample};
use crate::summary::Summary;

use super::*;

fn view(records: &[Record]) -> View {
    let summary = Summary::of(records).unwrap();
    let groups = groups(records, &summary.metric);
    let plots = plots::draw(Study {
        summary: &summary,
        groups: &groups,
    })
    .unwrap();
    View::of(records, &summary, &groups, &plots)
}

fn records() -> Vec<Record> {
    let mut best = record("LoRA r8", 1e-3, 1, 0.9, 0.9);
    best.predictions = predictions(&[1.0; 30]);
    let mut worse = record("LoRA r4", 1e-3, 1, 0.8, 0.5);
    worse.predictions = predictions(&[vec![1.0; 15], vec![0.0; 15]].concat());
    let mut out = failed("Full", 1e-3, 1, diverged());
    out.trial.id = "full|<script>".into();
    best.samples = vec![Sample {
        prompt: "2 < 3 & \"so\"?".into(),
        expected: "yes".into(),
        before: "the the".into(),
        after: "yes".into(),
    }];
    vec![best, worse, out]
}

#[test]
fn the_markdown_page_has_the_table_the_failures_and_the_notes() {
    let page = markdown(&view(&records())).unwrap();
    assert!(page.starts_with("# study\n\nWhich is better?\n"), "{page}");
    assert!(
        page.contains("**LoRA r8** has the best accuracy on test."),
        "{page}"
    );
    assert!(page.contains("| **LoRA r8** ◆ | 90.00 |"), "{page}");
    assert!(
        page.contains("−50.00 (−66.67 to −33.33) | <0.001 |"),
        "{page}"
    );
    assert!(
        page.contains("| full\\|&lt;script> | diverged | loss is NaN at step 3 |"),
        "{page}"
    );
    assert!(page.contains("- One seed per method"), "{page}");
    assert!(page.contains("](plots/score_by_params.svg)"), "{page}");
    // Every row of a table has the columns of its head.
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let summary: Vec<_> = page
        .lines()
        .skip_while(|l| !l.starts_with("| label"))
        .collect();
    let rows: Vec<_> = summary.iter().take_while(|l| l.starts_with('|')).collect();
    assert_eq!(rows.len(), 5);
    assert!(
        rows.iter().all(|row| columns(row) == columns(rows[0])),
        "{rows:#?}"
    );
}

#[test]
fn the_html_page_escapes_what_records_hold_and_loads_nothing() {
    let page = html(&view(&records())).unwrap();
    assert!(page.contains("full|&lt;script&gt;"));
    assert!(page.contains("2 &lt; 3 &amp; &quot;so&quot;?"));
    assert_eq!(page.matches("<svg ").count(), 5);
    assert_eq!(page.matches("<script").count(), 1);
    for loaded in ["src=", "<link", "@import", "url(", "fetch("] {
        assert!(!page.contains(loaded), "{loaded}");
    }
    // The namespace of inline SVG is a name, not an address that is loaded.
    let addresses = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!addresses.contains("http://") && !addresses.contains("https://"));
}

#[test]
fn rows_sort_by_value_and_not_by_text() {
    let page = html(&view(&records())).unwrap();
    assert!(page.contains(r#"<td class="n" data-sort="8000">8.00k</td>"#));
    assert!(page.contains(r#"<td class="n" data-sort="">–</td>"#));
}

#[test]
fn names_in_notes_are_set_as_code_and_escaped() {
    let mut records = records();
    records[1].trial.label = "a<b".into();
    records[1].predictions.truncate(3);
    let page = html(&view(&records)).unwrap();
    assert!(
        page.contains("not of the same test examples: <code>a&lt;b</code>."),
        "{page}"
    );
}

#[test]
fn a_study_of_failures_alone_still_makes_both_pages() {
    let view = view(&[failed("LoRA r8", 1e-3, 1, diverged())]);
    assert!(
        markdown(&view)
            .unwrap()
            .contains("No trial ended with a test score.")
    );
    let html = html(&view).unwrap();
    assert!(html.contains("loss is NaN at step 3") && !html.contains("<svg"));
}

#[test]
fn links_stand_in_the_order_of_the_sections_they_lead_to() {
    let page = html(&view(&records())).unwrap();
    let after = |mark: &str| -> Vec<String> {
        let parts = page.split(mark).skip(1);
        parts
            .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
            .collect()
    };
    let links = after("href=\"#");
    assert_eq!(links, after("<section id=\""));
    assert_eq!((links[0].as_str(), links.len()), ("summary", 8));
}
