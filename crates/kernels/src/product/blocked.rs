//! A product in blocks that fit the caches, its columns shared out among threads.
//!
//! A thread copies a block of the right matrix into panels that stay in its second-level cache,
//! then goes through the left matrix a few rows at a time, which stay in the first level. An element
//! of the result is summed in the same order whatever the number of threads.

// Threads write to distinct columns of the same result, which no slice can express.
#![allow(unsafe_code)]

use core::ops::Range;
use std::cell::RefCell;

use rayon::prelude::*;

use crate::buffer;

use super::copy::has_avx512;
use super::tile::{COLS, ROWS, SIDE_BY_SIDE, Tile};
use super::{Blocks, Start, View, ViewMut};

/// Length of the sums taken at a time.
const DEPTH: usize = 384;
/// Most panels of a block: 384 x 480 elements are 740 kB, over half of a second-level cache.
const PANELS: usize = 10;

/// Most values of the left matrix that are copied before the product: 16 MB.
const LARGEST_ORDERED: usize = 1 << 22;
/// Results narrower or lower than this, and sums that are shorter, are left to the `gemm` crate:
/// copying blocks would cost more than it saves.
const SMALLEST: usize = 32;
const SHORTEST: usize = 8;

/// Whether this processor can multiply such matrices here, and it is worth it.
pub(super) fn suits([rows, depth]: [usize; 2], [_, cols]: [usize; 2]) -> bool {
    has_avx512() && rows.min(cols) >= SMALLEST && depth >= SHORTEST
}

/// Where the result goes.
struct Out {
    data: *mut f32,
    stride: usize,
}

impl From<ViewMut<'_>> for Out {
    fn from(view: ViewMut<'_>) -> Self {
        Self {
            data: view.data,
            stride: view.row_stride,
        }
    }
}

// SAFETY: tasks write to distinct rows and columns.
unsafe impl Sync for Out {}

/// A part of the result: whole panels of columns, and some rows.
#[derive(Clone, Copy)]
struct Task {
    first_row: usize,
    rows: usize,
    first_col: usize,
    cols: usize,
}

thread_local! {
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Floats of a cache line.
const LINE: usize = 16;

/// So many floats from the start of a cache line on: vectors that straddle two lines take twice as
/// long to load.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len + LINE, 0.0);
    let from = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut buffer[from..from + len]
}

/// `out = start + left right` by all threads, for shapes that agree.
pub(super) fn product(out: ViewMut<'_>, start: Start<'_>, left: View<'_>, right: &dyn Blocks) {
    assert!(has_avx512(), "`suits` was not asked");
    let tasks = tasks(out.rows, out.cols, rayon::current_num_threads());
    let job = Job {
        depth: left.cols,
        start,
        alpha: 1.0,
        left: Left::new(left),
        right,
        out: Out::from(out),
    };
    match &tasks[..] {
        [only] => job.run(only),
        many => many.par_iter().for_each(|task| job.run(task)),
    }
}

/// `out = start + alpha * left right` by this thread alone, for shapes that agree.
pub(super) fn product_here(
    out: ViewMut<'_>,
    start: Start<'_>,
    alpha: f32,
    left: View<'_>,
    right: &dyn Blocks,
) {
    assert!(has_avx512(), "`suits` was not asked");
    let tasks = tasks(out.rows, out.cols, 1);
    let job = Job {
        depth: left.cols,
        start,
        alpha,
        left: Left::AsItIs(left),
        right,
        out: Out::from(out),
    };
    tasks.iter().for_each(|task| job.run(task));
}

/// A product, as all its tasks see it.
struct Job<'a> {
    /// Length of the sums.
    depth: usize,
    start: Start<'a>,
    alpha: f32,
    left: Left<'a>,
    right: &'a dyn Blocks,
    out: Out,
}

impl Job<'_> {
    fn run(&self, task: &Task) {
        let depth = self.depth;
        // Taken and not borrowed: what a block's copy does is not known here, and if it let this
        // thread begin another task, that one has to find a buffer too.
        let mut buffer = BUFFER.take();
        let whole = DEPTH * COLS * PANELS;
        let (panels, few_rows) =
            aligned(&mut buffer, whole + SIDE_BY_SIDE * DEPTH).split_at_mut(whole);
        for first in (0..depth).step_by(DEPTH) {
            let sums = first..depth.min(first + DEPTH);
            self.copy_panels(task, sums.clone(), panels);
            self.add_stretch(task, sums, panels, few_rows);
        }
        BUFFER.set(buffer);
    }

    /// Copies a stretch of a task's columns into panels.
    fn copy_panels(&self, task: &Task, sums: Range<usize>, panels: &mut [f32]) {
        let panels = panels.chunks_mut(DEPTH * COLS);
        for (first, panel) in (0..task.cols).step_by(COLS).zip(panels) {
            let cols = task.first_col + first..task.first_col + task.cols.min(first + COLS);
            if cols.len() < COLS {
                panel[..sums.len() * COLS].fill(0.0);
            }
            self.right.copy(sums.clone(), cols, panel, COLS);
        }
    }

    /// Adds a stretch of the sums to a part of the result.
    fn add_stretch(&self, task: &Task, sums: Range<usize>, panels: &[f32], few_rows: &mut [f32]) {
        let end = task.first_row + task.rows;
        for first_row in (task.first_row..end).step_by(SIDE_BY_SIDE) {
            let rows = first_row..end.min(first_row + SIDE_BY_SIDE);
            let left = self.left.rows(rows.clone(), sums.clone(), few_rows);
            let panels = panels.chunks(DEPTH * COLS);
            for (first, panel) in (0..task.cols).step_by(COLS).zip(panels) {
                for row in rows.clone().step_by(ROWS) {
                    let tile = Tile {
                        left: &left[row - first_row..],
                        panel,
                        depth: sums.len(),
                        rows: ROWS.min(end - row),
                        cols: COLS.min(task.cols - first),
                        alpha: self.alpha,
                        start: self.start_of(sums.start, task.first_col + first),
                    };
                    let place = row * self.out.stride + task.first_col + first;
                    // SAFETY: `suits` has seen AVX-512; the tile lies within the result, whose
                    // shape is that of the operands, in this task's part.
                    unsafe { tile.run(self.out.data.add(place), self.out.stride) };
                }
            }
        }
    }

    /// What a tile at a column starts from, given where its stretch of the sums starts.
    fn start_of(&self, sum: usize, col: usize) -> Start<'_> {
        match self.start {
            _ if sum > 0 => Start::Out,
            Start::Row(row) => Start::Row(&row[col..]),
            other => other,
        }
    }
}

/// The left matrix, in the order of the tiles if all of it fits into a buffer.
enum Left<'a> {
    /// For [`SIDE_BY_SIDE`] rows at a time, its columns one after the other.
    Ordered { data: Vec<f32>, depth: usize },
    /// To be copied a few rows at a time, by every task anew.
    AsItIs(View<'a>),
}

impl<'a> Left<'a> {
    fn new(left: View<'a>) -> Self {
        let [rows, depth] = left.shape();
        let part = SIDE_BY_SIDE * depth;
        let len = rows.div_ceil(SIDE_BY_SIDE) * part;
        if len > LARGEST_ORDERED {
            return Self::AsItIs(left);
        }
        let data = buffer::fill_parts(len, part, |start, out| {
            let first = start / depth;
            let rows = first..rows.min(first + SIDE_BY_SIDE);
            left.copy_transposed(rows, 0..depth, out, SIDE_BY_SIDE);
        });
        Self::Ordered { data, depth }
    }

    /// A stretch of some rows, in the order of the tiles.
    fn rows<'b>(&'b self, rows: Range<usize>, sums: Range<usize>, few: &'b mut [f32]) -> &'b [f32] {
        match self {
            Self::Ordered { data, depth } => {
                &data[rows.start * depth + sums.start * SIDE_BY_SIDE..][..sums.len() * SIDE_BY_SIDE]
            }
            Self::AsItIs(left) => {
                left.copy_transposed(rows, sums, few, SIDE_BY_SIDE);
                few
            }
        }
    }
}

/// Shares out the result so that every thread has as much to do, and none too little.
fn tasks(rows: usize, cols: usize, threads: usize) -> Vec<Task> {
    let panels = cols.div_ceil(COLS);
    // Where there are too few panels for all threads, rows are shared out as well.
    let col_tasks = panels.div_ceil(PANELS).max(threads.min(panels)).max(1);
    let col_tasks = col_tasks
        .next_multiple_of(threads.min(panels).max(1))
        .min(panels.max(1));
    let row_tasks = threads
        .div_ceil(col_tasks)
        .min(rows.div_ceil(SIDE_BY_SIDE))
        .max(1);
    let row_step = rows.div_ceil(row_tasks).next_multiple_of(SIDE_BY_SIDE);
    let mut tasks = Vec::new();
    for i in 0..col_tasks {
        let [from, to] = [i, i + 1].map(|i| (panels * i / col_tasks * COLS).min(cols));
        for first_row in (0..rows).step_by(row_step) {
            tasks.push(Task {
                first_row,
                rows: row_step.min(rows - first_row),
                first_col: from,
                cols: to - from,
            });
        }
    }
    tasks
}
