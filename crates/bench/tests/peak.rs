//! The peak of a process's memory; a file of its own, because other tests share their process.
#![cfg(target_os = "linux")]

use bench::memory::{peak_rss, restart_peak};

/// Whether the peak after a restart leaves out 300 MB that were freed before it.
fn restarts() -> bool {
    let large = std::hint::black_box(vec![1u8; 300 << 20]);
    let before = peak_rss();
    drop(large);
    restart_peak();
    peak_rss() + (200 << 20) < before
}

#[test]
fn the_peak_can_start_anew() {
    if std::fs::write("/proc/self/clear_refs", "5").is_err() {
        eprintln!("skipped: this system does not let a process restart its peak");
        return;
    }
    // The system counts pages in batches of its own, now and then late.
    assert!((0..5).any(|_| restarts()));
}
