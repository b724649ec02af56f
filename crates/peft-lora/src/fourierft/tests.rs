use super::*;
use crate::family::testing::{computes, device, site, stirred};
use peft_core::Role;

peft_core::contract_tests!(FourierFt);

/// The update by the definition of the inverse transform, entry by entry.
fn plain(spectrum: &[f32], places: &[usize], d_in: usize, d_out: usize) -> Tensor<2> {
    let entry = |at: usize| {
        let (i, o) = (at / d_out, at % d_out);
        let of = |(c, place): (&f32, &usize)| {
            let turns =
                (place / d_in * o) as f64 / d_out as f64 + (place % d_in * i) as f64 / d_in as f64;
            f64::from(*c) * (std::f64::consts::TAU * turns).cos()
        };
        let sum: f64 = spectrum.iter().zip(places).map(of).sum();
        (sum / (d_in * d_out) as f64) as f32
    };
    let values: Vec<f32> = (0..d_in * d_out).map(entry).collect();
    Tensor::from_data(TensorData::new(values, [d_in, d_out]), &device())
}

fn check(n_frequency: usize) {
    let method = FourierFt {
        n_frequency,
        scaling: 40.0,
        ..FourierFt::default()
    };
    let proj = stirred(&method, &site(Role::Query, 12, 10));
    let layer: &FourierLinear = proj.downcast_ref().unwrap();
    let places = Places::new(&method, (12, 10), &Init::new(0, &device()));
    let shared = SharedSlot::new(FourierShared {
        places: vec![places],
    });
    let pass = Pass::with_shared(Some(&shared));
    let spectrum: Vec<f32> = layer.spectrum.val().into_data().try_to_vec().unwrap();
    let places = random_places(777, 120, n_frequency);
    let update = plain(&spectrum, &places, 12, 10).mul_scalar(40.0);
    let weight = layer.base.weight(&pass) + update;
    computes(&proj, &pass, weight, layer.base.bias().unwrap());
}

#[test]
fn few_and_many_frequencies_give_the_inverse_transform() {
    [1, 2, 30, 120].into_iter().for_each(check);
}

#[test]
fn layers_of_one_shape_share_their_places() {
    let mut init = Init::new(0, &device());
    let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut init);
    let method = FourierFt {
        n_frequency: 3,
        targets: Targets::all_linear(),
        ..FourierFt::default()
    };
    let geometry = peft_core::Host::geometry(&toy);
    let shared = method.shared(&geometry, &mut init).unwrap();
    let pass = Pass::with_shared(Some(&shared));
    let shared: &FourierShared = pass.shared();
    // Twelve layers in three shapes.
    assert_eq!(shared.places.len(), 3);
    assert_eq!(selected(&method.targets, &geometry).count(), 12);
}

#[test]
fn more_frequencies_than_weights_are_refused_with_the_layer() {
    let mut init = Init::new(0, &burn::tensor::Device::flex());
    let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut init);
    let geometry = peft_core::Host::geometry(&toy);
    let method = FourierFt {
        n_frequency: 65,
        ..FourierFt::default()
    };
    let error = method.check(&geometry).unwrap_err().to_string();
    assert!(
        error.contains("between 1 and 64") && error.contains("attn.query"),
        "{error}"
    );
}
