use burn::module::Module;
use burn::tensor::{Device, Tensor, Tolerance};
use peft_core::contract::random;
use peft_core::{Dense, Method, Pass, Sublayer, Tap};

use super::*;

peft_core::contract_tests!(Fusion);

/// A tap that adds a constant multiple of the residual stream.
#[derive(Module, Debug)]
struct Adds {
    times: f64,
}

impl Tap for Adds {
    fn forward(&self, sublayer: Sublayer<'_>, _pass: &Pass<'_>) -> Tensor<3> {
        sublayer.output + sublayer.residual.mul_scalar(self.times)
    }
}

#[test]
fn without_matrices_it_is_the_softmax_of_plain_products() {
    let device = Device::flex();
    let fusion = Fusion {
        query: false,
        key: false,
        value_initialized: true,
        ..Fusion::default()
    };
    let taps = vec![
        Some(TapSlot::new(Adds { times: 1.0 })),
        None,
        Some(TapSlot::new(Adds { times: -2.0 })),
    ];
    let tap = FusionTap::new(&fusion, taps, 3, &mut Init::new(0, &device));
    let (x, y) = (
        random::<3>([1, 1, 3], &device),
        random::<3>([1, 1, 3], &device),
    );
    let sublayer = Sublayer {
        residual: x.clone(),
        output: y.clone(),
        norm: None,
    };
    let out = tap.forward(sublayer, &Pass::new());
    let values = |t: &Tensor<3>| -> Vec<f64> {
        let values = t.to_data().try_to_vec::<f32>().unwrap();
        values.into_iter().map(f64::from).collect()
    };
    let (x, y) = (values(&x), values(&y));
    // Scores s . u for u = x and u = -2 x, with s = x + y.
    let product: f64 = x.iter().zip(&y).map(|(x, y)| (x + y) * x).sum();
    let (a, b) = (product.exp(), (-2.0 * product).exp());
    let mean = (a - 2.0 * b) / (a + b);
    let expected: Vec<f32> = x
        .iter()
        .zip(&y)
        .map(|(x, y)| (y + mean * x) as f32)
        .collect();
    let expected = burn::tensor::TensorData::new(expected, [1, 1, 3]);
    let tolerance = Tolerance::absolute(1e-4);
    out.into_data()
        .assert_approx_eq::<f32>(&expected, tolerance);
}

#[test]
fn scores_are_products_of_queries_with_the_keys_of_what_the_adapters_add() {
    let device = Device::flex();
    let mut init = Init::new(0, &device);
    let mut tap = FusionTap::new(&Fusion::default(), Vec::new(), 3, &mut init);
    let bias = Some(random([3], &device));
    tap.key = Some(Dense::new(random([3, 3], &device), bias));
    let (query, added) = (random([2, 4, 3], &device), random([2, 4, 5, 3], &device));
    let keys = tap.key.as_ref().unwrap().apply(added.clone());
    let expected = (query.clone().unsqueeze_dim::<4>(2) * keys).sum_dim(3);
    let found = tap.scores(query, &added).into_data();
    found.assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(1e-5));
}

#[test]
fn what_changes_more_than_sublayers_is_refused_by_its_place() {
    let toy = <peft_core::toy::Toy as peft_core::contract::ContractHost>::build(&mut Init::new(
        0,
        &Device::flex(),
    ));
    let geometry = peft_core::Host::geometry(&toy);
    let refused = |second: Part| {
        let (pfeiffer, _, _) = crate::examples::bottlenecks();
        let fusion = Fusion {
            parts: vec![Part::of(pfeiffer), second],
            ..Fusion::default()
        };
        fusion.check(&geometry).unwrap_err().to_string()
    };
    for (part, seam) in [
        (Part::of(crate::Prefix::default()), "the attention core"),
        (Part::of(crate::BitFit::default()), "parameters of the base"),
    ] {
        let error = refused(part);
        assert!(
            error.contains("`parts[1]`") && error.contains(seam),
            "{error}"
        );
    }
}

#[test]
fn the_value_matrix_is_held_near_the_identity() {
    let device = Device::flex();
    let near = FusionTap::distance(Tensor::eye(4, &device)).into_scalar::<f32>();
    let far = FusionTap::distance(Tensor::zeros([4, 4], &device)).into_scalar::<f32>();
    assert_eq!(near, 0.0);
    assert!((far - 0.04).abs() < 1e-6, "{far}");
}
