use super::*;
use burn::tensor::{Device, TensorData, Tolerance};
use peft_core::contract::{ContractHost, perturbed};
use peft_core::{Adapted, Host, Text, adapt, toy::Toy};

peft_core::contract_tests!(Hyper);

fn multitask() -> Hyper {
    Hyper {
        tasks: 3,
        ..Hyper::examples().swap_remove(2)
    }
}

fn model(method: &Hyper) -> Adapted<Toy> {
    let mut init = Init::new(5, &Device::flex().autodiff());
    let toy = Toy::build(&mut init);
    perturbed(adapt(toy, method, None, &mut init).unwrap(), 0.3).valid()
}

fn tap() -> HyperAdapter {
    HyperAdapter {
        widths: (8, 3),
        dropout: DropoutConfig::new(0.0).init(),
        place: Place::new(1, Role::AfterMlp).unwrap(),
        non_linearity: Activation::GeluTanh,
    }
}

/// What the adapter of the second layer makes of `y` when its rows are of these tasks.
fn adapted(model: &Adapted<Toy>, y: Tensor<3>, tasks: Option<&[i64]>) -> TensorData {
    let pass = model.pass();
    let tasks = tasks.map(|ids| Tensor::from_data(TensorData::from(ids), &y.device()));
    pass.see(Text {
        tasks,
        ..Text::default()
    });
    let sublayer = Sublayer {
        residual: y.clone(),
        output: y,
        norm: None,
    };
    tap().forward(sublayer, &pass).into_data()
}

fn states(rows: usize) -> Tensor<3> {
    Init::new(9, &Device::flex()).normal([rows, 4, 8], 1.0)
}

#[test]
fn rows_of_different_tasks_in_one_batch_get_what_each_gets_alone() {
    let model = model(&multitask());
    let y = states(3);
    let together = adapted(&model, y.clone(), Some(&[2, 0, 1]));
    let close = Tolerance::absolute(1e-5);
    for (row, task) in [2, 0, 1].into_iter().enumerate() {
        let alone = adapted(&model, y.clone().narrow(0, row, 1), Some(&[task]));
        let ours = Tensor::<3>::from_data(together.clone(), &Device::flex()).narrow(0, row, 1);
        ours.into_data().assert_approx_eq::<f32>(&alone, close);
    }
    let unsaid = adapted(&model, y.clone(), None);
    let first = adapted(&model, y.clone(), Some(&[0, 0, 0]));
    unsaid.assert_approx_eq::<f32>(&first, close);
    assert_ne!(unsaid, adapted(&model, y, Some(&[1, 1, 1])));
}

#[test]
fn an_interpolation_wholly_of_one_task_is_that_task_and_a_mixed_one_is_neither() {
    let plain = model(&multitask());
    let mixed = |weights: [f64; 3]| {
        model(&Hyper {
            interpolate: Some(weights.to_vec()),
            ..multitask()
        })
    };
    let y = states(2);
    let second = adapted(&plain, y.clone(), Some(&[1, 1]));
    // The tasks of the rows play no part any more.
    let ours = adapted(&mixed([0.0, 1.0, 0.0]), y.clone(), Some(&[2, 0]));
    let close = Tolerance::absolute(1e-5);
    ours.assert_approx_eq::<f32>(&second, close);
    let between = adapted(&mixed([0.0, 0.5, 0.5]), y, None);
    let distance = peft_core::contract::relative_distance(&between, &second);
    assert!(distance > 1e-3, "{distance}");
}

#[test]
fn adapters_made_for_good_are_those_of_every_task_and_need_no_network() {
    let model = model(&multitask());
    let made = tap().settled(&model.pass()).unwrap();
    let y = states(3);
    for tasks in [None, Some([2i64, 0, 1])] {
        let expected = adapted(&model, y.clone(), tasks.as_ref().map(|ids| &ids[..]));
        let pass = Pass::new();
        pass.see(Text {
            tasks: tasks.map(|ids| Tensor::from_data(ids, &y.device())),
            ..Text::default()
        });
        let sublayer = Sublayer {
            residual: y.clone(),
            output: y.clone(),
            norm: None,
        };
        let found = TapSlot::apply(Some(&made), sublayer, &pass).into_data();
        found.assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
    }
}

#[test]
fn what_the_network_makes_is_what_its_parts_say() {
    let model = model(&multitask());
    let pass = model.pass();
    let net: &TaskHyperNet = pass.shared();
    let embedding = net
        .net
        .embed(net.context(None), Place::new(1, Role::AfterMlp).unwrap());
    let make =
        |g: &Generator| embedding.clone().matmul(g.weight.val()) + g.base.val().unsqueeze::<2>();
    let y = states(1);
    let rows = y.clone().squeeze_dim::<2>(0);
    let h = rows.clone().matmul(make(&net.net.down).reshape([8, 3])) + make(&net.net.down_bias);
    let h = Activation::GeluTanh.forward(h);
    let u = h.matmul(make(&net.net.up).reshape([3, 8])) + make(&net.net.up_bias);
    let centred = u.clone() - u.mean_dim(1);
    let variance = centred.clone().powi_scalar(2).mean_dim(1);
    let (gamma, beta) = net.norm.as_ref().unwrap();
    let normal = centred / (variance + 1e-5).sqrt();
    let expected = rows + normal * make(gamma) + make(beta);
    let expected = expected.unsqueeze::<3>().into_data();
    adapted(&model, y, None).assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-5));
}

#[test]
fn absurd_sizes_and_wrong_interpolations_are_refused_by_name() {
    let toy = Toy::build(&mut Init::new(0, &Device::flex())).geometry();
    let refusal = |method: Hyper| method.check(&toy).unwrap_err().to_string();
    let huge = Hyper {
        task_dim: 1 << 15,
        bottleneck: 1 << 15,
        ..Hyper::default()
    };
    assert!(refusal(huge).contains("`task_dim * bottleneck`"));
    let short = Hyper {
        interpolate: Some(vec![1.0]),
        ..multitask()
    };
    assert!(refusal(short).contains("`interpolate` is 1 weights, expected one for each of 3"));
    let endless = Hyper {
        interpolate: Some(vec![1.0, f64::INFINITY, 0.0]),
        ..multitask()
    };
    assert!(refusal(endless).contains("expected finite numbers"));
}
