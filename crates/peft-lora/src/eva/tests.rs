use super::components::Scatter;
use super::*;
use crate::family::testing::{largest, site};
use burn::linalg;
use burn::tensor::Device;
use peft_core::contract::{ContractHost, Setting, random};
use peft_core::toy::Toy;
use peft_core::{Host, Role};

peft_core::contract_tests!(Eva);

fn toy() -> Toy {
    Toy::build(&mut Init::new(7, &Device::flex().autodiff()))
}

/// What the look of the contract's batch of 24 tokens finds.
fn looked(eva: &Eva) -> Result<Eva, CoreError> {
    let device = Device::flex();
    let setting = Setting::dense(device.clone());
    let run = (7, &device.autodiff());
    let found = peft_core::look(&toy(), eva, None, &setting, run)?.expect("it looks at data");
    Ok(serde_json::from_value(found.config).unwrap())
}

/// Rows that count, and beside them rows as padding leaves them, in two batches of different form.
fn batches(rows: &Tensor<2>) -> Vec<(Tensor<3>, Tensor<2>)> {
    let [count, d] = rows.dims();
    let junk = random([2, d], &rows.device()).mul_scalar(1e3);
    let first = Tensor::cat(vec![rows.clone().narrow(0, 0, 6), junk], 0);
    let second = rows.clone().narrow(0, 6, count - 6);
    let mask = Tensor::from_data([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]], &rows.device());
    let ones = Tensor::ones([1, count - 6], &rows.device());
    vec![
        (first.reshape([2, 4, d]), mask),
        (second.reshape([1, count - 6, d]), ones),
    ]
}

fn components(rows: &Tensor<2>, most: usize) -> Components {
    let [_, d] = rows.dims();
    let mut scatter = Scatter::default();
    for (x, counted) in batches(rows) {
        scatter.add(x, counted);
    }
    scatter.components(&site(Role::Query, d, 3), most).unwrap()
}

#[test]
fn components_are_the_right_singular_vectors_of_the_centred_tokens_that_count() {
    let device = Device::flex();
    // A mean far from zero, as a transformer's activations have in some features.
    let rows = random([20, 6], &device) + random([1, 6], &device).mul_scalar(50.0);
    let centred = rows.clone() - rows.clone().mean_dim(0);
    let (_, s, vt) = linalg::svd::<2, 1>(centred.clone(), 100);
    let found = components(&rows, 4);

    let a = Tensor::<2>::from_data(found.first(4, false), &device);
    let products = vt.clone().narrow(0, 0, 4).matmul(a);
    assert!(largest(products.abs() - Tensor::eye(4, &device)) < 1e-3);
    let squares: Vec<f32> = s.square().into_data().try_to_vec().unwrap();
    let all: f32 = squares.iter().sum();
    for (share, square) in found.shares.iter().zip(&squares) {
        assert!((share - f64::from(square / all)).abs() < 1e-4, "{share}");
    }
}

#[test]
fn whitened_directions_are_divided_by_the_roots_of_their_singular_values() {
    let device = Device::flex();
    let rows = random([20, 6], &device);
    let centred = rows.clone() - rows.clone().mean_dim(0);
    let (_, s, _) = linalg::svd::<2, 1>(centred, 100);
    let found = components(&rows, 3).first(3, true);
    let found = Tensor::<2>::from_data(found, &device);
    let lengths = found.square().sum_dim(0).squeeze_dim::<1>(0);
    assert!(largest(lengths * s.narrow(0, 0, 3) - 1.0) < 1e-3);
}

#[test]
fn inputs_that_do_not_vary_give_finite_directions_and_explain_nothing() {
    let rows = Tensor::<2>::ones([20, 6], &Device::flex());
    let found = components(&rows, 2);
    assert!(
        found.shares.iter().all(|share| share.abs() < 1e-3),
        "{found:?}"
    );
    for whiten in [false, true] {
        let start = found.first(2, whiten);
        assert!(start.iter::<f32>().all(f32::is_finite), "{start:?}");
    }
}

#[test]
fn the_largest_shares_of_all_layers_get_the_ranks() {
    let eva = Eva {
        rank: 2,
        ..Eva::default()
    };
    let shares = [
        vec![0.9, 0.05, 0.03, 0.02],
        vec![0.3, 0.25, 0.2, 0.1],
        vec![0.02, 0.01, 0.01, 0.0],
    ];
    assert_eq!(eva.ranks(&shares), [2, 4, 0]);
    // Of equal layers the earlier is served first.
    let equal = [vec![0.5, 0.3, 0.2], vec![0.5, 0.3, 0.2]];
    assert_eq!(Eva { rank: 1, ..eva }.ranks(&equal), [1, 1]);
}

#[test]
fn ranks_move_up_to_rho_and_stay_as_many_in_all() {
    let geometry = toy().geometry();
    let eva = Eva {
        rank: 4,
        alpha: 12.0,
        rho: 1.5,
        targets: Targets::all_linear(),
        ..Eva::default()
    };
    let found = looked(&eva).unwrap();
    let lora = found.lora();
    let rank = |site: &Site| match found.updates(site) {
        true => lora.rank_at(&site.path),
        false => 0,
    };
    let ranks: Vec<usize> = geometry.sites.iter().map(rank).collect();
    assert_eq!(ranks.iter().sum::<usize>(), 4 * geometry.sites.len());
    let most = *ranks.iter().max().unwrap();
    assert!((5..=6).contains(&most), "{ranks:?}");
    for site in geometry.sites.iter().filter(|site| found.updates(site)) {
        assert!((lora.scaling_at(&site.path) - 3.0).abs() < 1e-12);
    }
    let fixed = Eva {
        adjust_scaling_factors: false,
        ..eva
    };
    let lora = looked(&fixed).unwrap().lora();
    let moved = ranks.iter().position(|rank| *rank == most).unwrap();
    let path = &geometry.sites[moved].path;
    assert_eq!(lora.scaling_at(path), 12.0 / most as f64);
}

#[test]
fn without_room_to_move_the_ranks_and_the_parameters_are_those_of_lora() {
    let geometry = toy().geometry();
    let eva = Eva {
        rank: 2,
        rho: 1.0,
        targets: Targets::all_linear(),
        ..Eva::default()
    };
    let found = looked(&eva).unwrap();
    assert_eq!(found, Eva { ..eva.clone() });
    assert_eq!(
        found.parameters(&geometry),
        eva.lora().parameters(&geometry)
    );
}

#[test]
fn layers_that_read_the_same_share_their_components_and_others_do_not() {
    let device = Device::flex();
    let named = |layer, role| Site {
        layer,
        path: format!("{layer}.{role:?}"),
        ..site(role, 6, 3)
    };
    let (query, key) = (named(0, Role::Query), named(0, Role::Key));
    let (down, above) = (named(0, Role::Down), named(1, Role::Query));
    let sites = [&query, &key, &down, &above];
    let (mut inputs, mut alone) = (Inputs::default(), [0; 4].map(|_| Scatter::default()));
    for _ in 0..2 {
        let (x, y) = (random([2, 8, 6], &device), random([2, 8, 6], &device));
        let ones = Tensor::ones([2, 8], &device);
        let given = [x.clone(), x.clone(), y, x];
        for ((site, scatter), x) in sites.iter().zip(&mut alone).zip(given) {
            inputs.add(site, x.clone(), ones.clone());
            scatter.add(x, ones.clone());
        }
    }
    assert_eq!(inputs.gathered(), 3);
    let found = inputs.components(&sites, |_| 4).unwrap();
    for ((found, scatter), site) in found.iter().zip(&alone).zip(sites) {
        let expected = scatter.components(site, 4).unwrap();
        assert_eq!(found.shares, expected.shares);
        assert_eq!(found.first(4, true), expected.first(4, true));
    }
}

#[test]
fn a_layer_left_without_ranks_is_not_changed() {
    let geometry = toy().geometry();
    let path = geometry.sites[0].path.clone();
    let eva = Eva {
        rank: 2,
        rank_pattern: BTreeMap::from([(path.clone(), 0)]),
        targets: Targets::all_linear(),
        ..Eva::default()
    };
    eva.check(&geometry).unwrap();
    let mut init = Init::new(1, &Device::flex().autodiff());
    let model = peft_core::adapt(toy(), &eva, None, &mut init).unwrap();
    let foreign = eva.peft(&model.host.geometry()).unwrap();
    assert!(
        foreign
            .rules
            .iter()
            .all(|rule| !rule.place.starts_with(&path))
    );
    assert_eq!(
        peft_core::state::trainable_parameters(&model),
        eva.parameters(&geometry)
    );
    // And is read back as no target.
    let mut fields = Fields::new("adapter_config.json", foreign.fields);
    let read = Eva::from_peft(&mut fields, &geometry).unwrap().unwrap();
    assert_eq!(read.parameters(&geometry), eva.parameters(&geometry));
    assert!(!read.updates(&geometry.sites[0]));
}

#[test]
fn what_a_look_could_not_start_from_is_refused_by_name() {
    let error = |eva: Eva| looked(&eva).unwrap_err().to_string();
    let mut scatter = Scatter::default();
    let (x, counted) = (random([1, 4, 6], &Device::flex()), [[1.0, 1.0, 0.0, 1.0]]);
    scatter.add(x, Tensor::from_data(counted, &Device::flex()));
    let too_few = scatter.components(&site(Role::Query, 6, 3), 3).unwrap_err();
    let too_few = too_few.to_string();
    assert!(too_few.contains("`batches` is so few"), "{too_few}");
    let given = error(Eva {
        rank_pattern: BTreeMap::from([(toy().geometry().sites[0].path.clone(), 1)]),
        targets: Targets::all_linear(),
        rank: 2,
        ..Eva::default()
    });
    assert!(given.contains("`rank_pattern`"), "{given}");
    for (rho, rank, named) in [
        (0.5, 2, "`rho`"),
        (f64::NAN, 2, "`rho`"),
        (2.0, 9, "`rank`"),
    ] {
        let refused = error(Eva {
            rho,
            rank,
            ..Eva::default()
        });
        assert!(refused.contains(named), "{refused}");
    }
}

#[test]
fn a_file_of_peft_with_more_than_this_start_can_have_is_refused() {
    let geometry = toy().geometry();
    let read = |own: serde_json::Value| {
        let mut fields = serde_json::json!({
            "peft_type": "LORA", "r": 2, "init_lora_weights": "eva",
            "target_modules": ["query"], "eva_config": {"rho": 1.5, "tau": 0.9},
        });
        let table = fields.as_object_mut().unwrap();
        table.extend(own.as_object().unwrap().clone());
        let mut fields = Fields::new("adapter_config.json", table.clone());
        Eva::from_peft(&mut fields, &geometry).map_err(|e| e.to_string())
    };
    let eva = read(serde_json::json!({})).unwrap().unwrap();
    assert_eq!((eva.rank, eva.rho), (2, 1.5));
    for (own, named) in [
        (serde_json::json!({"use_dora": true}), "use_dora"),
        (serde_json::json!({"bias": "all"}), "init_lora_weights"),
        (
            serde_json::json!({"eva_config": {"row": 2.0}}),
            "eva_config",
        ),
    ] {
        let error = read(own).unwrap_err();
        assert!(error.contains(named), "{error}");
    }
    let plain = read(serde_json::json!({"init_lora_weights": true}));
    assert!(plain.unwrap().is_none());
}
