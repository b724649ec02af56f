use super::*;
use burn::tensor::{Device, Int, TensorData, Tolerance};
use peft_core::contract::{ContractHost, perturbed};
use peft_core::exchange::{collect, export, import};
use peft_core::{Host, adapt, toy::Toy};

peft_core::contract_tests!(Prefix);

#[test]
fn a_settled_prefix_computes_what_the_network_did_and_has_the_tensors_of_peft() {
    let mut init = Init::new(1, &Device::flex().autodiff());
    let method = Prefix {
        takes_positions: true,
        ..Prefix::examples().swap_remove(2)
    };
    let toy = Toy::build(&mut init);
    let model = perturbed(adapt(toy, &method, None, &mut init).unwrap(), 0.1);
    let rules = method.peft(&model.host.geometry()).unwrap().rules;
    assert!(
        collect(&model, &rules).is_err(),
        "the network would be lost"
    );
    let settled = model.clone().settled();
    assert!(settled.shared.is_none());
    let theirs = export(&collect(&settled, &rules).unwrap(), &rules).unwrap();
    assert_eq!(theirs["prompt_embeddings"].shape().to_vec(), [2, 2 * 2 * 8]);
    let logits = |model| {
        let ids = Tensor::<2, Int>::from_data([[1, 5, 2]], init.device());
        Toy::logits(model, ids).into_data()
    };
    logits(&settled).assert_approx_eq::<f32>(&logits(&model), Tolerance::absolute(1e-6));
}

#[test]
fn flat_prefixes_of_adapterhub_are_one_vector() {
    let toy = Toy::build(&mut Init::new(0, &Device::flex())).geometry();
    let flat = Prefix::examples().swap_remove(0);
    let form = flat.adapter_hub(&toy, "x").unwrap();
    let ours = |rule: &peft_core::Rule| {
        let values = (0..3 * 8).map(|i| i as f32 + rule.place.len() as f32);
        let data = TensorData::new(values.collect(), [3, 8]);
        (rule.place.clone(), data)
    };
    let ours = form.rules.iter().map(ours).collect();
    let theirs = export(&ours, &form.rules).unwrap();
    let (key, whole) = theirs.first_key_value().unwrap();
    assert!(
        key.ends_with("prefix_tuning.prefix_tunings.x.self_prefix.control_trans"),
        "{key}"
    );
    assert_eq!(whole.shape().to_vec(), [3 * 2 * 2 * 8]);
    assert_eq!(import(theirs, &form.rules, "x").unwrap(), ours);
}
