use super::*;

/// Error function from its series, all terms of one sign.
pub(crate) fn erf64(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    core::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

fn grid() -> Vec<f32> {
    (-60_000..=60_003).map(|i| i as f32 * 2e-4).collect()
}

#[test]
fn exponential_is_within_two_units_in_the_last_place() {
    for x in (-8700..=8800).map(|i| i as f32 * 0.01) {
        let exact = f64::from(x).exp();
        for y in [exp::<Fused>(x), exp::<Portable>(x)] {
            let error = (f64::from(y) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
    }
    assert!(exp::<Fused>(f32::NAN).is_nan());
}

#[test]
fn error_function_is_within_4e_7() {
    for x in grid() {
        for y in [erf::<Fused>(x), erf::<Portable>(x)] {
            let error = (f64::from(y) - erf64(f64::from(x)).clamp(-1.0, 1.0)).abs();
            assert!(error < 4e-7, "erf({x}) is off by {error:e}");
        }
    }
    assert!(erf::<Fused>(f32::NAN).is_nan());
}

#[test]
fn gelu_and_its_derivative_are_within_2e_6_of_the_f64_values() {
    let x = grid();
    let ones = vec![1.0; x.len()];
    let (mut y, mut dy) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    gelu(&x, &mut y);
    gelu_backward(&x, &ones, &mut dy);
    for ((&x, &y), &dy) in x.iter().zip(&y).zip(&dy) {
        let x = f64::from(x);
        let cdf = 0.5 + 0.5 * erf64(x * core::f64::consts::FRAC_1_SQRT_2);
        let density = (-0.5 * x * x).exp() / (2.0 * core::f64::consts::PI).sqrt();
        assert!((f64::from(y) - x * cdf).abs() < 2e-6, "gelu({x}) is {y}");
        assert!(
            (f64::from(dy) - cdf - x * density).abs() < 2e-6,
            "gelu'({x}) is {dy}"
        );
    }
}

#[test]
fn tanh_gelu_and_its_derivative_are_within_2e_6_of_the_f64_values() {
    let x = grid();
    let ones = vec![1.0; x.len()];
    let (mut y, mut dy) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    gelu_tanh(&x, &mut y);
    gelu_tanh_backward(&x, &ones, &mut dy);
    for ((&x, &y), &dy) in x.iter().zip(&y).zip(&dy) {
        let x = f64::from(x);
        let k = (2.0 / core::f64::consts::PI).sqrt();
        let t = (k * (x + 0.044715 * x * x * x)).tanh();
        let slope = k * (1.0 + 3.0 * 0.044715 * x * x);
        let exact = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
        assert!(
            (f64::from(y) - 0.5 * x * (1.0 + t)).abs() < 2e-6,
            "at {x}: {y}"
        );
        assert!(
            (f64::from(dy) - exact).abs() < 2e-6,
            "at {x}: {dy}, not {exact}"
        );
    }
}

#[test]
fn a_row_with_nan_gives_nan_probabilities() {
    let mut row = vec![0.5; 40];
    row[37] = f32::NAN;
    softmax_row(&mut row, &[1.0; 40]);
    assert!(row.iter().all(|p| p.is_nan()));
}
