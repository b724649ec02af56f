use super::*;

fn values(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * seed).sin()).collect()
}

/// The product by its definition, in f64.
fn sums(start: impl Fn(usize, usize) -> f32, a: View<'_>, b: View<'_>) -> Vec<f64> {
    let at = |m: View<'_>, i, j| f64::from(m.data[i * m.row_stride + j * m.col_stride]);
    let element = |i, j| {
        let sum: f64 = (0..a.cols).map(|k| at(a, i, k) * at(b, k, j)).sum();
        f64::from(start(i, j)) + sum
    };
    (0..a.rows)
        .flat_map(|i| (0..b.cols).map(move |j| (i, j)))
        .map(|(i, j)| element(i, j))
        .collect()
}

fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*f) - e).abs() < 2e-4,
            "element {i}: {f}, expected {e}"
        );
    }
}

/// A matrix of which nothing is known to lie in memory.
struct Hidden<'a>(View<'a>);

impl Blocks for Hidden<'_> {
    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }
    fn copy(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], stride: usize) {
        self.0.copy(rows, cols, out, stride);
    }
}

/// Shapes around every boundary: tiles, panels, blocks, and what the `gemm` crate is left with.
const SHAPES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [5, 3, 7],
    [8, 40, 48],
    [32, 8, 32],
    [33, 385, 49],
    [47, 20, 1000],
    [100, 769, 33],
    [64, 9, 97],
    [130, 400, 130],
    [40, 1, 40],
];

#[test]
fn products_match_the_sums_for_any_shape_layout_and_start() {
    for [m, k, n] in SHAPES {
        let (a, b) = (values(m * k * 2, 0.7), values(k * n * 2, 0.3));
        let (row, old) = (values(n, 0.9), values(m * n, 0.11));
        let lefts = [
            View::new(&a, [m, k], [k, 1]),
            View::new(&a, [m, k], [1, m]),
            View::new(&a, [m, k], [2 * k, 2]),
        ];
        let rights = [
            View::new(&b, [k, n], [n, 1]),
            View::new(&b, [k, n], [1, k]),
            View::new(&b, [k, n], [2 * n, 1]),
        ];
        for left in lefts {
            for right in rights {
                assert_close(
                    &product(Start::Zero, left, &right),
                    &sums(|_, _| 0.0, left, right),
                );
                let with_row = product(Start::Row(&row), left, &Hidden(right));
                assert_close(&with_row, &sums(|_, j| row[j], left, right));
                let mut out = old.clone();
                multiply(ViewMut::rows(&mut out, n), Start::Out, left, &right);
                assert_close(&out, &sums(|i, j| old[i * n + j], left, right));
            }
        }
    }
}

#[test]
fn parts_in_codes_are_decoded_one_after_the_other() {
    let [m, k, n] = [3, 2 * DECODED_ROWS + 5, 10];
    let (a, b, row) = (values(m * k, 0.7), values(k * n, 0.3), values(n, 0.5));
    let (left, right) = (View::rows(&a, k), View::rows(&b, n));
    let found = product(Start::Row(&row), left, &Hidden(right));
    assert_close(&found, &sums(|_, j| row[j], left, right));
}

#[test]
fn the_number_of_threads_does_not_change_a_single_bit() {
    let [m, k, n] = [70, 800, 500];
    let (a, b) = (values(m * k, 0.7), values(k * n, 0.3));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| product(Start::Zero, View::rows(&a, k), &View::rows(&b, n)))
    };
    let one = with(1);
    assert!((2..5).all(|threads| with(threads) == one));
}

#[test]
fn an_empty_sum_leaves_the_start() {
    let row = [1.0, 2.0];
    let found = product(
        Start::Row(&row),
        View::new(&[], [2, 0], [0, 1]),
        &View::new(&[], [0, 2], [2, 1]),
    );
    assert_eq!(found, [1.0, 2.0, 1.0, 2.0]);
}

#[test]
fn products_of_strided_views_by_one_thread_match_the_sums() {
    let (a, b) = (values(40, 0.7), values(60, 0.3));
    let left = View::new(&a[2..], [3, 5], [7, 2]);
    let right = View::new(&b, [4, 5], [11, 1]).t();
    let mut out = vec![1.0; 12];
    add_here(ViewMut::rows(&mut out, 4), 1.0, left, right);
    assert_close(&out, &sums(|_, _| 1.0, left, right));
    assign_here(ViewMut::rows(&mut out, 4), 1.0, left, right);
    assert_close(&out, &sums(|_, _| 0.0, left, right));
}

#[test]
fn head_views_write_each_its_own_columns() {
    let mut out = vec![0.0; 2 * 3 * 2 * 2];
    for (i, view) in ViewMut::heads(&mut out, [2, 3, 2, 2])
        .into_iter()
        .enumerate()
    {
        let ones = [1.0 + i as f32; 6];
        let one = [1.0; 1];
        let column = View::new(&ones, [3, 1], [1, 1]);
        let row = View::new(&one, [1, 2], [0, 0]);
        assign_here(view, 1.0, column, row);
    }
    let expected = [1., 1., 2., 2.]
        .repeat(3)
        .into_iter()
        .chain([3., 3., 4., 4.].repeat(3));
    assert!(out.iter().copied().eq(expected));
}
