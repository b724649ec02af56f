use std::collections::BTreeMap;

use super::*;
use crate::study::OneOrMany;
use burn::tensor::Device;
use models::{BertConfig, Family};
use peft_core::{Init, Trained, adapt};
use peft_lora::Lora;

/// A small BERT, whose classifier is a head.
fn bert(method: &dyn Method) -> Adapted<Model> {
    let config = serde_json::json!({
        "vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 3,
        "num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 16,
        "type_vocab_size": 2, "num_labels": 3
    });
    let config = BertConfig::from_json(Family::Bert, &config, "test".as_ref()).unwrap();
    let mut init = Init::new(0, &Device::flex().autodiff());
    let base = Model::random_bert(config, &mut init).unwrap();
    adapt(base, method, None, &mut init).unwrap()
}

fn config(text: &str) -> TrainConfig {
    toml::from_str(text).unwrap()
}

fn groups(method: &dyn Method, text: &str) -> Result<Groups> {
    Groups::new(&bert(method), method, &config(text))
}

/// The factor on the rate of every trained parameter, by name.
fn factors(method: &dyn Method, text: &str) -> BTreeMap<String, f64> {
    let model = bert(method);
    let groups = Groups::new(&model, method, &config(text)).unwrap();
    let rates = groups.rates(0.5);
    let params = trained(&model);
    let of = |p: &Trained| (p.name.clone(), rates.lr_from_param(p.id, None) / 0.5);
    params.iter().map(of).collect()
}

#[test]
fn rates_fall_by_the_layer_from_the_head_to_the_embeddings() {
    let factors = factors(&peft_adapter::Full {}, "layer_decay = 0.5");
    for (name, expected) in [
        ("classifier.weight", 1.0),
        ("bert.pooler.dense.bias", 1.0),
        ("bert.encoder.layer.2.output.dense.weight", 0.5),
        ("bert.encoder.layer.1.attention.self.query.bias", 0.25),
        (
            "bert.encoder.layer.0.attention.output.LayerNorm.weight",
            0.125,
        ),
        ("bert.embeddings.word_embeddings.weight", 0.0625),
    ] {
        assert_eq!(factors[name], expected, "{name}");
    }
}

#[test]
fn a_longer_name_counts_before_a_shorter_one_and_names_before_keywords() {
    let lora = Lora {
        targets: peft_core::Targets::Many(vec!["query".into(), "value".into()]),
        ..Lora::default()
    };
    let text = "rates = { head = 3, new = 5, query = 7, \"query/b\" = 11 }\nlayer_decay = 0.5";
    let factors = factors(&lora, text);
    for (name, expected) in [
        ("classifier.bias", 3.0),
        ("bert.encoder.layer.2.attention.self.value/a", 5.0 * 0.5),
        ("bert.encoder.layer.2.attention.self.query/a", 7.0 * 0.5),
        ("bert.encoder.layer.0.attention.self.query/b", 11.0 * 0.125),
    ] {
        assert_eq!(factors[name], expected, "{name}");
    }
    assert_eq!(factors.len(), 2 + 3 * 4);
}

#[test]
fn a_name_that_matches_nothing_is_an_error_that_lists_what_there_is() {
    let lora = Lora::default();
    for (text, key) in [
        ("rates = { nroms = 2 }", "train.rates"),
        ("no_decay = [\"biases\", \"nroms\"]", "train.no_decay"),
        ("freeze = [{ params = [\"nroms\"] }]", "train.freeze"),
    ] {
        let error = groups(&lora, text).err().unwrap().to_string();
        let expected = format!("`{key}` names `nroms`, which no parameter of the model matches");
        assert!(error.contains(&expected), "{error}");
        for known in [
            "`head`",
            "`new`",
            "`biases`",
            "`query/a`",
            "`classifier.weight`",
        ] {
            assert!(error.contains(known), "{known} is not in: {error}");
        }
        assert!(!error.contains("`base`"), "{error}");
    }
    let error = groups(&lora, "rates = { \"qurey/b\" = 2 }").err().unwrap();
    assert!(error.to_string().contains("`qurey/b`"), "{error}");
}

#[test]
fn a_name_of_what_another_method_trains_is_without_effect() {
    let text = "rates = { norms = 2, base = 3, \"output.dense.weight\" = 4, \"key/b\" = 5 }\n\
                no_decay = [\"norms\", \"layer.0\"]\n\
                freeze = [{ params = [\"word_embeddings\", \"norms\"] }]";
    let query = peft_core::Targets::Many(vec!["query".into()]);
    let lora = Lora {
        targets: query,
        ..Lora::default()
    };
    let groups = groups(&lora, text).unwrap();
    assert!(groups.factors.is_empty() && groups.frozen_in(0).is_empty());
    // Of layer 0 LoRA trains two matrices.
    assert_eq!(groups.undecayed.len(), 2);
}

/// What the methods train together on a model with a classifier.
fn trained_by(methods: &[&dyn Method]) -> Vec<Trained> {
    let models = methods.iter().map(|method| bert(*method));
    models.flat_map(|model| trained(&model)).collect()
}

#[test]
fn one_setting_is_for_every_method_of_a_study() {
    let (lora, bitfit) = (Lora::default(), peft_adapter::BitFit::default());
    let settings = config("no_decay = [\"norms\", \"biases\"]");
    let undecayed = |method: &dyn Method| {
        let model = bert(method);
        let groups = Groups::new(&model, method, &settings).unwrap();
        let is_undecayed = |p: &Trained| groups.undecayed.contains(&p.id);
        let params = trained(&model).into_iter().filter(is_undecayed);
        params.map(|p| p.name).collect::<Vec<_>>()
    };
    assert_eq!(undecayed(&lora), ["classifier.bias"]);
    let biases = undecayed(&bitfit);
    assert!(biases.len() > 20 && biases.iter().all(|name| name.ends_with(".bias")));
    check_used(&settings, &trained_by(&[&lora, &bitfit])).unwrap();
    let error = check_used(&settings, &trained_by(&[&lora])).unwrap_err();
    let error = error.to_string();
    let expected = "`train.no_decay` names `norms`, which no method of the study trains";
    assert!(
        error.contains(expected) && error.contains("`query/a`"),
        "{error}"
    );
}

#[test]
fn the_example_of_the_readme_runs_in_the_study_it_names() {
    let readme = include_str!("../../../../README.md");
    let (_, rest) = readme.split_once("every method of a study").unwrap();
    let block = rest.split("```").nth(1).unwrap();
    let block: toml::Table = toml::from_str(block.strip_prefix("toml").unwrap()).unwrap();
    let settings: TrainConfig = block["train"].clone().try_into().unwrap();
    check(&settings).unwrap();
    let methods: [&dyn Method; 2] = [&Lora::default(), &peft_adapter::Full {}];
    for method in methods {
        Groups::new(&bert(method), method, &settings).unwrap();
    }
    check_used(&settings, &trained_by(&methods)).unwrap();
}

#[test]
fn two_factors_for_one_parameter_are_an_error_that_names_both() {
    let text = "rates = { biases = 2, base = 3 }";
    let error = groups(&peft_adapter::Full {}, text).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("`base`, `biases`"), "{error}");
}

#[test]
fn an_epoch_with_nothing_to_train_is_an_error() {
    let text =
        "epochs = 3\nfreeze = [{ params = [\"head\"] }, { params = [\"new\"], from_epoch = 2 }]";
    let error = groups(&Lora::default(), text).err().unwrap().to_string();
    assert!(error.contains("nothing to train in epoch 2"), "{error}");
    let fine = text.replace("epochs = 3", "epochs = 2");
    assert!(groups(&Lora::default(), &fine).is_ok());
}

#[test]
fn parameters_are_frozen_from_one_epoch_until_another() {
    let text = "freeze = [{ params = [\"head\"], from_epoch = 1, until_epoch = 3 },\
                { params = [\"classifier.bias\"], until_epoch = 2 }]";
    let groups = groups(&Lora::default(), text).unwrap();
    let counts: Vec<_> = (0..4).map(|epoch| groups.frozen_in(epoch).len()).collect();
    assert_eq!(counts, [1, 2, 2, 0]);
}

#[test]
fn without_settings_all_train_at_one_rate() {
    let lora = Lora::default();
    let model = bert(&lora);
    let groups = Groups::new(&model, &lora, &TrainConfig::default()).unwrap();
    assert!(groups.factors.is_empty() && groups.undecayed.is_empty());
    assert!(groups.frozen_in(0).is_empty());
    assert_eq!(groups.rates(0.25).base(), 0.25);
}

#[test]
fn impossible_settings_are_refused_by_name() {
    for (text, expected) in [
        ("rates = { head = 0.0 }", "`train.rates` has 0 for `head`"),
        ("layer_decay = 1.5", "`train.layer_decay` is 1.5"),
        ("freeze = [{ params = [] }]", "no `params`"),
        (
            "freeze = [{ params = [\"head\"], from_epoch = 2, until_epoch = 2 }]",
            "`until_epoch`",
        ),
    ] {
        let error = check(&config(text)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert!(check(&TrainConfig::default()).is_ok());
}

#[test]
fn settings_left_out_leave_no_trace_in_the_identity_of_a_trial() {
    let train = TrainConfig {
        learning_rate: OneOrMany::One(1e-3),
        ..TrainConfig::default()
    };
    let json = serde_json::to_value(train).unwrap();
    for key in ["warmup_steps", "rates", "layer_decay", "no_decay", "freeze"] {
        assert!(json.get(key).is_none(), "{key}");
    }
}
