use super::*;
use burn::tensor::{Device, Tolerance};
use peft_core::{Memory, Text};

peft_core::contract_tests!(HyperInstance);

const SHAPE: HyperShape = HyperShape {
    d: 6,
    m: 3,
    layers: 2,
    e: 4,
    hidden: 5,
};

/// A network whose every weight differs from zero.
fn network() -> TextHyperNet {
    let mut init = Init::new(3, &Device::flex());
    TextHyperNet {
        pool: Param::from_tensor(init.normal([6, 4], 1.0)),
        pool_bias: Param::from_tensor(init.normal([4], 1.0)),
        net: HyperNet::new(SHAPE, (0.5, 0.5), &mut init),
    }
}

/// Texts of a model that generates, or else of an encoder.
fn texts(causal: bool) -> Text {
    Text {
        causal,
        ..Text::default()
    }
}

fn states(seq: usize) -> Tensor<3> {
    Init::new(9, &Device::flex()).normal([2, seq, 6], 1.0)
}

fn run(network: &TextHyperNet, x: Tensor<3>, text: Text, memory: Option<Memory>) -> Tensor<3> {
    let shared = SharedSlot::new(network.clone());
    let pass = Pass::with_shared(Some(&shared)).with_memory(memory);
    pass.see(text);
    let tap = InstanceAdapter {
        dropout: DropoutConfig::new(0.0).init(),
        place: Place::new(1, Role::AfterAttention).unwrap(),
        non_linearity: Activation::Tanh,
    };
    let sublayer = Sublayer {
        residual: x.clone().mul_scalar(2.0),
        output: x,
        norm: None,
    };
    tap.forward(sublayer, &pass)
}

fn assert_close(a: Tensor<3>, b: Tensor<3>) {
    let close = Tolerance::absolute(1e-5);
    a.into_data().assert_approx_eq::<f32>(&b.into_data(), close);
}

#[test]
fn the_factored_product_is_the_product_with_the_whole_weights() {
    let network = network();
    let x = states(5).narrow(0, 0, 1);
    let pass = Pass::new();
    let place = Place::new(1, Role::AfterAttention).unwrap();
    let twice = x.clone().mul_scalar(2.0);
    let embedding = network.embedding(twice, place, &pass);
    let embedding = embedding.reshape([1, 4]);
    let make = |g: &Generator| g.forward(embedding.clone());
    let rows = x.clone().squeeze_dim::<2>(0);
    let net = &network.net;
    let h = rows.clone().matmul(make(&net.down).reshape([6, 3])) + make(&net.down_bias);
    let u = h.tanh().matmul(make(&net.up).reshape([3, 6])) + make(&net.up_bias);
    let expected = (rows + u).unsqueeze::<3>();
    assert_close(run(&network, x, Text::default(), None), expected);
}

#[test]
fn padding_is_no_part_of_the_mean() {
    for causal in [false, true] {
        let network = network();
        let x = states(6);
        let mask = Tensor::<2>::from_floats(
            [
                [0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
                [0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
            ],
            &x.device(),
        );
        let text = Text {
            mask: Some(mask),
            ..texts(causal)
        };
        let padded = run(&network, x.clone(), text, None).narrow(1, 2, 4);
        let bare = run(&network, x.narrow(1, 2, 4), texts(causal), None);
        assert_close(padded, bare);
    }
}

#[test]
fn a_token_of_a_language_model_depends_on_no_later_one_and_texts_differ() {
    let network = network();
    let x = states(5);
    let whole = run(&network, x.clone(), texts(true), None);
    let first = run(&network, x.clone().narrow(1, 0, 3), texts(true), None);
    assert_close(whole.clone().narrow(1, 0, 3), first.clone());
    // In an encoder it does, and the last token of both has seen the same.
    let encoder = run(&network, x, texts(false), None);
    let distance = |a: Tensor<3>, b: Tensor<3>| (a - b).abs().max().into_scalar::<f32>();
    assert!(distance(encoder.clone().narrow(1, 0, 3), first) > 1e-2);
    assert_close(encoder.narrow(1, 4, 1), whole.narrow(1, 4, 1));
}

#[test]
fn token_by_token_with_a_memory_gives_what_one_pass_gives() {
    let network = network();
    let x = states(5);
    let whole = run(&network, x.clone(), texts(true), None);
    let memory = Memory::new();
    for (start, count) in [(0, 3), (3, 1), (4, 1)] {
        let text = Text {
            seen: start,
            ..texts(true)
        };
        let part = x.clone().narrow(1, start, count);
        let part = run(&network, part, text, Some(memory.clone()));
        assert_close(part, whole.clone().narrow(1, start, count));
    }
}
