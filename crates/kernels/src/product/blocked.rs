//! A product in blocks that fit the caches, its columns shared out among threads.
//!
//! A thread copies a block of the right matrix into panels that stay in its second-level cache,
//! then goes through the left matrix a few rows at a time, which stay in the first level. An element
//! of the result is summed in the same order whatever the number of threads.

// Threads write to distinct columns of the same result, which no slice can express.
#![allow(unsafe_code)]

use std::cell::RefCell;

use rayon::prelude::*;

use super::copy::has_avx512;
use super::tile::{COLS, ROWS, SIDE_BY_SIDE, Tile};
use super::{Blocks, Start, View, ViewMut};

/// Length of the sums taken at a time.
const DEPTH: usize = 384;
/// Most panels of a block: 384 x 480 elements are 740 kB, over half of a second-level cache.
const PANELS: usize = 10;

/// Results narrower or lower than this, and sums that are shorter, are left to the `gemm` crate:
/// copying blocks would cost more than it saves.
const SMALLEST: usize = 32;
const SHORTEST: usize = 8;

/// Whether this processor can multiply such matrices here, and it is worth it.
pub(super) fn suits([rows, depth]: [usize; 2], [_, cols]: [usize; 2]) -> bool {
    cfg!(target_arch = "x86_64") && has_avx512() && rows.min(cols) >= SMALLEST && depth >= SHORTEST
}

/// Where the result goes.
struct Out {
    data: *mut f32,
    stride: usize,
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

/// `out = start + left right`, for shapes that agree.
pub(super) fn product(out: ViewMut<'_>, start: Start<'_>, left: View<'_>, right: &dyn Blocks) {
    let ([rows, depth], [_, cols]) = (left.shape(), right.shape());
    let tasks = tasks(rows, cols, rayon::current_num_threads());
    let out = Out {
        data: out.data,
        stride: out.row_stride,
    };
    let run = |task: &Task| {
        BUFFER.with_borrow_mut(|buffer| {
            let whole = DEPTH * COLS * PANELS;
            let buffer = aligned(buffer, whole + SIDE_BY_SIDE * DEPTH);
            let (panels, few_rows) = buffer.split_at_mut(whole);
            for first in (0..depth).step_by(DEPTH) {
                let sums = Sums {
                    first,
                    depth: DEPTH.min(depth - first),
                    start: if first == 0 { start } else { Start::Out },
                };
                sums.add(&out, task, left, right, panels, few_rows);
            }
        });
    };
    match &tasks[..] {
        [only] => run(only),
        many => many.par_iter().for_each(run),
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

/// A stretch of the sums.
struct Sums<'a> {
    first: usize,
    depth: usize,
    start: Start<'a>,
}

impl Sums<'_> {
    /// Adds this stretch to a part of the result.
    fn add(
        &self,
        out: &Out,
        task: &Task,
        left: View<'_>,
        right: &dyn Blocks,
        panels: &mut [f32],
        few_rows: &mut [f32],
    ) {
        let sums = self.first..self.first + self.depth;
        for (i, panel) in panels.chunks_mut(DEPTH * COLS).enumerate() {
            let first = i * COLS;
            if first >= task.cols {
                break;
            }
            let cols = task.first_col + first..task.first_col + task.cols.min(first + COLS);
            if cols.len() < COLS {
                panel[..self.depth * COLS].fill(0.0);
            }
            right.copy(sums.clone(), cols, panel, COLS);
        }
        let end = task.first_row + task.rows;
        for first_row in (task.first_row..end).step_by(SIDE_BY_SIDE) {
            let rows = first_row..end.min(first_row + SIDE_BY_SIDE);
            left.copy_transposed(rows.clone(), sums.clone(), few_rows, SIDE_BY_SIDE);
            for (i, panel) in panels.chunks(DEPTH * COLS).enumerate() {
                let first = i * COLS;
                if first >= task.cols {
                    break;
                }
                let col = task.first_col + first;
                for row in rows.clone().step_by(ROWS) {
                    let tile = Tile {
                        left: &few_rows[row - first_row..],
                        panel,
                        depth: self.depth,
                        rows: ROWS.min(end - row),
                        cols: COLS.min(task.cols - first),
                        start: match self.start {
                            Start::Row(row) => Start::Row(&row[col..]),
                            other => other,
                        },
                    };
                    // SAFETY: `suits` has seen AVX-512; the tile lies within the result, whose shape is
                    // that of the operands, in this task's part.
                    unsafe { tile.run(out.data.add(row * out.stride + col), out.stride) };
                }
            }
        }
    }
}
