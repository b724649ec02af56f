use super::*;
use crate::family::testing::{computes, device, site, stirred};
use burn::tensor::Tensor;
use peft_core::contract::random;
use peft_core::{Pass, Projection, Role};

peft_core::contract_tests!(AdaLora);

fn example() -> AdaLora {
    AdaLora {
        init_rank: 4,
        target_rank: 2,
        alpha: 6.0,
        total_steps: 10,
        ..AdaLora::default()
    }
}

fn shared(weight: f64) -> SharedSlot {
    SharedSlot::new(AdaLoraShared { weight })
}

fn geometry() -> Geometry {
    let mut init = Init::new(0, &burn::tensor::Device::flex());
    let toy: peft_core::toy::Toy = peft_core::contract::ContractHost::build(&mut init);
    peft_core::Host::geometry(&toy)
}

#[test]
fn the_update_is_scaled_by_the_rank_before_pruning() {
    let site = site(Role::Query, 6, 5);
    let kept = vec![true, false, false, true];
    let method = AdaLora {
        rank_pattern: BTreeMap::from([(site.path.clone(), kept)]),
        ..example()
    };
    let proj = stirred(&method, &site);
    let layer: &AdaLoraLinear = proj.downcast_ref().unwrap();
    assert_eq!(layer.rank(), 2);
    let slot = shared(0.0);
    let pass = Pass::with_shared(Some(&slot));
    let diagonal = Tensor::<2>::eye(2, &device()) * layer.e.val().unsqueeze();
    let update = layer.a.val().matmul(diagonal).matmul(layer.b.val());
    let base = layer.weight(&pass) - update.clone().mul_scalar(6.0 / 4.00001);
    computes(
        &proj,
        &pass,
        base + update.mul_scalar(1.5),
        layer.bias().unwrap(),
    );
}

#[test]
fn a_layer_that_lost_all_its_ranks_is_the_base() {
    let site = site(Role::Query, 6, 5);
    let method = AdaLora {
        rank_pattern: BTreeMap::from([(site.path.clone(), vec![false; 4])]),
        ..example()
    };
    let base = peft_core::Dense::new(random([6, 5], &device()), Some(random([5], &device())));
    let (weight, bias) = (base.weight.val(), base.bias.as_ref().unwrap().val());
    let proj = method.project(&site, Proj::new(base), &mut Init::new(0, &device()));
    assert!(proj.downcast_ref::<AdaLoraLinear>().is_some());
    computes(&proj, &Pass::new(), weight, bias);
}

#[test]
fn the_orthogonality_loss_is_the_mean_distance_over_all_matrices() {
    let proj = stirred(&example(), &site(Role::Query, 6, 5));
    let layer: &AdaLoraLinear = proj.downcast_ref().unwrap();
    let distance = |products: Tensor<2>| {
        let off = products - Tensor::<2>::eye(4, &device());
        let square: f32 = off.square().sum().into_scalar();
        square.sqrt()
    };
    let (a, b) = (layer.a.val(), layer.b.val());
    let expected =
        distance(a.clone().transpose().matmul(a)) + distance(b.clone().matmul(b.transpose()));
    let slot = shared(0.25);
    let pass = Pass::with_shared(Some(&slot));
    proj.forward(random([1, 2, 6], &device()), &pass);
    let found: f32 = pass.take_loss().unwrap().into_scalar();
    assert!((found - 0.25 * expected).abs() < 1e-4, "{found} {expected}");
    // Two matrices in each of the toy's four targets.
    let of_the_model = example().shared(&geometry(), &mut Init::new(0, &device()));
    let pass = Pass::with_shared(of_the_model.as_ref());
    assert_eq!(pass.shared::<AdaLoraShared>().weight, 0.5 / 8.0);
    let plain = Pass::with_shared(Some(&slot));
    let inner = burn::tensor::Device::flex();
    let valid = burn::module::Module::valid(&proj);
    valid.forward(random([1, 2, 6], &inner), &plain);
    assert!(plain.take_loss().is_none());
}

#[test]
fn impossible_schedules_are_refused_by_name() {
    let refused = |change: fn(&mut AdaLora)| {
        let mut method = example();
        change(&mut method);
        method.check(&geometry()).unwrap_err().to_string()
    };
    example().check(&geometry()).unwrap();
    assert!(refused(|m| m.tinit = 10).contains("`tinit` is 10"));
    assert!(refused(|m| m.tfinal = usize::MAX).contains("`tinit` is 0"));
    assert!(refused(|m| m.delta_t = 0).contains("`delta_t` is 0"));
    assert!(refused(|m| m.target_rank = 5).contains("`target_rank` is 5"));
    assert!(refused(|m| m.beta1 = 1.0).contains("`beta1` is 1"));
    assert!(refused(|m| m.orth_reg_weight = -1.0).contains("`orth_reg_weight` is -1"));
    let kept = |path: &str, n| BTreeMap::from([(path.to_string(), vec![true; n])]);
    let mut method = example();
    method.rank_pattern = kept("layers.0.attn.query", 3);
    let error = method.check(&geometry()).unwrap_err().to_string();
    assert!(error.contains("`rank_pattern` is 3"), "{error}");
    method.rank_pattern = kept("layers.0.mlp.up", 4);
    let error = method.check(&geometry()).unwrap_err().to_string();
    assert!(error.contains("the path of a target"), "{error}");
}

#[test]
fn a_run_of_other_length_than_the_schedule_is_refused() {
    let init = || Init::new(0, &device());
    let error = example().regulator(11, init()).err().unwrap().to_string();
    assert!(
        error.contains("`total_steps` is 10, expected 11"),
        "{error}"
    );
    assert!(example().regulator(10, init()).unwrap().is_some());
    let open = AdaLora {
        total_steps: 0,
        tinit: 3,
        tfinal: 4,
        ..example()
    };
    open.check(&geometry()).unwrap();
    assert!(open.regulator(8, init()).unwrap().is_some());
    let error = open.regulator(7, init()).err().unwrap().to_string();
    assert!(error.contains("none of 7 steps"), "{error}");
}
