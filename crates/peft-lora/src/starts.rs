//! What every method draws at first, against HF PEFT: the figures follow from the sources of its
//! layers (0.21.2), whose `kaiming_uniform_(a=sqrt(5))` has the bound `1 / sqrt(fan)`, with the number
//! of columns of the matrix as it lies there for the fan.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peft_core::contract::ContractHost;
use peft_core::toy::Toy;
use peft_core::{Dense, Host, Init, Method, Proj, Role, state};

use crate::family::testing::site;
use crate::*;
use Draw::{Normal, Same, Uniform};

const D_IN: usize = 60;
const D_OUT: usize = 40;

/// How the values of a tensor are drawn.
#[derive(Clone, Copy, Debug)]
enum Draw {
    /// Within this bound, evenly.
    Uniform(f64),
    /// With this deviation.
    Normal(f64),
    /// All are this.
    Same(f64),
}

/// `kaiming_uniform_(a=sqrt(5))` of a matrix of so many columns.
fn kaiming(columns: usize) -> Draw {
    Uniform(1.0 / (columns as f64).sqrt())
}

fn check(name: &str, values: &[f64], draw: Draw) {
    let count = values.len() as f64;
    let std = (values.iter().map(|v| v * v).sum::<f64>() / count).sqrt();
    let most = values.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    // Three deviations of the deviation, as of normal values, which that of uniform ones is below.
    let near = |expected: f64| (std / expected - 1.0).abs() < 3.0 / (2.0 * count).sqrt();
    match draw {
        Same(value) => assert!(values.iter().all(|v| (v - value).abs() < 1e-6), "{name}"),
        Normal(expected) => assert!(near(expected), "{name}: {std}, expected {expected}"),
        Uniform(bound) => {
            let within = most <= bound * 1.000_001 && most > bound * (1.0 - 8.0 / count);
            assert!(within, "{name}: {most}, expected up to {bound}");
            assert!(near(bound / 3f64.sqrt()), "{name}: {std} for {bound}");
        }
    }
}

/// Checks the tensors that a method puts on a layer, and those that all its layers share.
fn starts(method: &dyn Method, own: &[(&str, Draw)], shared: &[(&str, Draw)]) {
    let device = Device::flex().autodiff();
    let site = site(Role::Query, D_IN, D_OUT);
    let base = Dense::new(Tensor::zeros([D_IN, D_OUT], &device), None);
    let mut init = Init::new(5, &device);
    let mut geometry = Toy::build(&mut init).geometry();
    geometry.sites = vec![site.clone()];
    let all = method.shared(&geometry, &mut init);
    let all = all
        .map(|all| state::float_tensors(&all))
        .unwrap_or_default();
    let layer = method.project(&site, Proj::new(base.no_grad()), &mut init);
    for (tensors, expected) in [(state::float_tensors(&layer), own), (all, shared)] {
        for (name, draw) in expected {
            let found = tensors.get(*name);
            let found = found.unwrap_or_else(|| panic!("`{name}` among {:?}", tensors.keys()));
            let values: Vec<f64> = found.clone().convert::<f64>().try_to_vec().unwrap();
            check(name, &values, *draw);
        }
    }
}

#[test]
fn loha_draws_as_peft_does() {
    let loha = Loha {
        rank: 4,
        ..Loha::default()
    };
    // hada_w1_a and hada_w2_a are [out, rank], hada_w1_b is [rank, in].
    let own = [
        ("b1", kaiming(4)),
        ("a1", kaiming(D_IN)),
        ("b2", kaiming(4)),
        ("a2", Same(0.0)),
    ];
    starts(&loha, &own, &[]);
}

#[test]
fn lokr_draws_as_peft_does() {
    let lokr = Lokr {
        rank: 2,
        ..Lokr::default()
    };
    // 60 is 6 times 10, and 40 is 5 times 8: lokr_w2_a is [8, rank], lokr_w2_b [rank, 10].
    let own = [
        ("small.Whole", Same(0.0)),
        ("large.Product.a", kaiming(10)),
        ("large.Product.b", kaiming(2)),
    ];
    starts(&lokr, &own, &[]);
    let both = Lokr {
        decompose_both: true,
        ..lokr
    };
    let own = [
        ("small.Product.a", kaiming(6)),
        ("small.Product.b", Same(0.0)),
    ];
    starts(&both, &own, &[]);
}

#[test]
fn gralora_draws_as_peft_does() {
    let gralora = Gralora {
        rank: 4,
        blocks: 2,
        ..Gralora::default()
    };
    // Each block of gralora_A is drawn as [rank, in / blocks].
    let own = [("a", kaiming(D_IN / 2)), ("b", Same(0.0))];
    starts(&gralora, &own, &[]);
}

#[test]
fn hra_draws_as_peft_does() {
    // hra_u is [in, rank], of which half the columns are drawn where they are paired.
    for (rank, columns) in [(4, 2), (3, 3), (1, 1)] {
        let hra = Hra {
            rank,
            ..Hra::default()
        };
        starts(&hra, &[("u", kaiming(columns))], &[]);
    }
}

#[test]
fn vera_draws_as_peft_does() {
    let vera = Vera {
        rank: 16,
        ..Vera::default()
    };
    // Its `_kaiming_init` has a gain of sqrt(2): vera_A is [rank, in], vera_B [out, rank].
    let drawn = |columns: usize| Uniform((6.0 / columns as f64).sqrt());
    let own = [("lambda_d", Same(0.1)), ("lambda_b", Same(0.0))];
    let shared = [("a.value", drawn(D_IN)), ("b.value", drawn(16))];
    starts(&vera, &own, &shared);
}

#[test]
fn randlora_draws_as_peft_does() {
    let randlora = RandLora {
        rank: 8,
        ..RandLora::default()
    };
    // Uniform, and divided by its deviation; gamma is [products, min(in, out)].
    let own = [("lambda", Same(0.0)), ("gamma", Same(1.0 / D_OUT as f64))];
    let of_variance_one = Uniform(3f64.sqrt());
    let shared = [("a", of_variance_one), ("b", of_variance_one)];
    starts(&randlora, &own, &shared);
}

#[test]
fn vb_lora_draws_as_peft_does() {
    let vb_lora = VbLora {
        num_vectors: 64,
        vector_length: 20,
        ..VbLora::default()
    };
    // `init_logits_std` and `init_vector_bank_bound` of its configuration.
    let own = [("logits_a", Normal(0.1)), ("logits_b", Normal(0.1))];
    starts(&vb_lora, &own, &[("bank", Uniform(0.02))]);
}

#[test]
fn adalora_draws_as_peft_does() {
    let own = [("a", Normal(0.02)), ("b", Normal(0.02)), ("e", Same(0.0))];
    starts(&AdaLora::default(), &own, &[]);
}

#[test]
fn delora_draws_as_peft_does() {
    // delora_A is [rank, in].
    let own = [
        ("a", kaiming(D_IN)),
        ("b", Same(0.0)),
        ("lambda", Same(15.0)),
    ];
    starts(&Delora::default(), &own, &[]);
}
